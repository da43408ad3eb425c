"""A service, its queue, its agents, and those who use it."""
