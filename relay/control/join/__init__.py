"""Admits nodes: join tokens, certificates of nodes, and taking them away."""
