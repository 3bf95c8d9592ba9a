"""Settings of our own programs."""
