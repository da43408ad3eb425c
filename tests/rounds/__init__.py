"""Decisions of a run."""
