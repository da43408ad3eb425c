"""The cloud's own process."""
