"""NVIDIA's GPUs: chips, quantization, products and kernels."""
