"""Kernels of our own where the profiler asks for them, each beside a plain version.

A kernel is an operation ``longlive::name``: the plain version is registered for all devices and the
Triton kernel over it for CUDA, so callers do not choose, and compiled code and graphs take it as
one call. Triton is imported by the first call on a GPU.
"""
