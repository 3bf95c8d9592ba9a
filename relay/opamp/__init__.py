"""The OpAMP protocol as objects that can be held in the hand: bytes and times in, bytes and changes out, no I/O."""
