"""Compiled CPU kernels and their Python bindings."""
