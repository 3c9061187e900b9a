"""Kernels for graphics processors, written in Triton. Nothing here is imported before one of them runs."""
