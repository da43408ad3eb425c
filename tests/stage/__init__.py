"""A span at work."""
