"""The packages of a region at its node."""
