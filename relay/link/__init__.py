"""The link between a node and the control plane."""
