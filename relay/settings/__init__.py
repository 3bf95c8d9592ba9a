"""What our own programs are told."""
