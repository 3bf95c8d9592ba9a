"""Reviewing changes: diffs, previews and drift."""
