"""The knowledge: agents in groups, sums and views, no I/O."""
