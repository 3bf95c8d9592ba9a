"""Package versions and their files."""
