"""The OpAMP regional relay: nodes that answer agents from cached policy, and their control plane."""

__version__ = "0.1.0"
