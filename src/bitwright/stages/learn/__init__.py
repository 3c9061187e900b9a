"""Learning: block reconstruction and its relatives, one loop."""
