"""Agents' connections: sockets in, message bodies out. What a message means is the business of `Agents`."""
