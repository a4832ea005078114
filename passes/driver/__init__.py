"""Pipelines of passes: parsing, registry, running, diagnostics."""
