"""The edge process: one frozen base shared by its devices."""
