"""What several passes share: modules read as programs, JAX functions lowered into modules."""
