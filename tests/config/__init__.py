"""Settings and the paths in them."""
