"""The fleet: what nodes report about themselves and their agents."""
