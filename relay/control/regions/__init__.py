"""The policy of each region: built, numbered, published and archived."""
