"""Agents' connections: sockets in, message bodies out. `Agents` decides what a message means."""
