"""Implementations of the embedding operation; each file defines ``KERNEL``."""
