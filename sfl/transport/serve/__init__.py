"""Conversations on the wire: the edge's service, and a device's link to it."""
