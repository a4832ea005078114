"""What a plan becomes in a module."""
