"""Decisions of a service: whose turn it is, and who computes what."""
