"""Packed and quantized weights, and the modules and kernels that compute with them."""
