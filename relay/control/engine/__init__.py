"""Rollouts in action: what moves by itself, and what people do to it."""
