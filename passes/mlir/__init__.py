"""Editing modules; symbols, attributes and annotations."""
