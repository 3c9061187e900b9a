"""Implementations of the hadamard operation; each file defines ``KERNEL``."""
