"""Public models from many libraries, and independent counts to hold the rewriter to."""
