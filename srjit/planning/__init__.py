"""From a program to a plan: provenance, roles, recipe rules, noise. Both doors use it."""
