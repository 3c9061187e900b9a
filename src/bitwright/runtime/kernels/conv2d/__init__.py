"""Implementations of the conv2d operation; each file defines ``KERNEL``."""
