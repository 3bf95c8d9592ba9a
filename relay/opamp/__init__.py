"""The OpAMP protocol without I/O: bytes and times in, bytes and changes out."""
