"""Recipes that code weights and activations."""
