"""Stages: the pure pieces that recipes are made of."""
