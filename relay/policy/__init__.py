"""The decision: which agent runs what. No I/O; nodes answer with it, the control plane previews with it."""
