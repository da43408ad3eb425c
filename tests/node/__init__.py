"""A process on its machine."""
