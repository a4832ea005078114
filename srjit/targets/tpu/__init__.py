"""TPUs: chips, quantization, products and kernels."""
