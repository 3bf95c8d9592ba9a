"""Questions before and beside a change."""
