"""Kernels written in Triton, each beside plain PyTorch operations that compute the same."""
