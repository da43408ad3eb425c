"""What a run leaves and shows."""
