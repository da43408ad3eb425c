"""What crosses a hop, and how it is secured."""
