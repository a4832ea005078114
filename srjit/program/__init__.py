"""A program as both doors see it."""
