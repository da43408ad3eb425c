"""The edge's own process."""
