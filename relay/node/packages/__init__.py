"""The package files of a region, on its node."""
