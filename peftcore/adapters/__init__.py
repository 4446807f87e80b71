"""Adapter and the families, one file each."""
