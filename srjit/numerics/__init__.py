"""The mathematics of quantization, in JAX: one idea a file, nothing here knows of jaxprs."""
