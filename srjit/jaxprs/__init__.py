"""The jaxpr door: find sites, infer roles, rewrite."""
