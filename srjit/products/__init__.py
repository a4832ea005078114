"""Bilinear products: shapes, transposes, work, and how scaled operands are multiplied."""
