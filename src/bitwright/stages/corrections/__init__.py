"""Corrections: cheap adjustments after the rounding."""
