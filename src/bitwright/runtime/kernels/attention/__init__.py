"""Implementations of the attention operation over coded keys and values; each file defines ``KERNEL``."""
