"""The global control plane: documents, what regions get of them, and what the fleet reports."""
