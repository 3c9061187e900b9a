"""Recipes that code the key-value cache."""
