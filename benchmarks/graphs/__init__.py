"""Model graphs that are cut in two: made, exported from real models, and as networks of others."""
