"""The control plane's authoritative state, and the only way to change it."""
