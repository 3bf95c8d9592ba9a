"""Who may do what: people's tokens and roles, agents' keys, revocations. Values and pure rules."""
