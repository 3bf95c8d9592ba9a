"""The keys by which nodes and control plane recognise each other."""
