"""The connection between an edge and the cloud: both ends of its stream."""
