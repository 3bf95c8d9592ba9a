"""Running rollouts: automatic steps, user actions, status and notices."""
