"""Strategies, and what they are given."""
