"""What the control plane holds to be true, and the one door to it."""
