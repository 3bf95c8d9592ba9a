"""The conversation between a node and the control plane."""
