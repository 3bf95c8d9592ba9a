"""Versions of packages, and their bytes."""
