"""Kernels: one folder per operation, one file per implementation, registered in :mod:`.table`."""
