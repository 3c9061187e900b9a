"""Recipes made for convolutional networks."""
