"""Implementations of the linear operation; each file defines ``KERNEL``."""
