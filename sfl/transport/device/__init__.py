"""The connection between a device and its edge: both ends of its stream."""
