"""Shipped for tests, demos and load: simulated agents, a fault proxy, clocks, certificates, a bad control plane."""
