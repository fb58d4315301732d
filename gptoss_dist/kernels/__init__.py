"""Kernels, each with its plain-torch reference, and the registry that chooses among them."""
