"""Reports: data, text and pages."""
