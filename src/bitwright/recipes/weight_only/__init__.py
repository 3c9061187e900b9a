"""Recipes that code weights only."""
