"""Policy: decides which agent runs what. No I/O. Nodes use it to answer agents, the control plane to preview changes."""
