"""The device's own process."""
