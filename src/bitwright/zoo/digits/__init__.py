"""The digits classifier: network source, weights and card."""
