"""What nodes report of themselves and of their agents."""
