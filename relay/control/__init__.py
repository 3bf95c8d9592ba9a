"""The global control plane: documents in, policies out to the regions, reports back from the fleet."""
