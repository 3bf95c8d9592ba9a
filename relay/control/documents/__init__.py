"""What people declare."""
