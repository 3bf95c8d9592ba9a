"""Storage of bytes by key. Encoding is up to the owners."""
