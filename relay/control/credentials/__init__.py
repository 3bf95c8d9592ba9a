"""Makes credentials and takes them away: agents' keys, people's tokens, revocations."""
