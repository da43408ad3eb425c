"""Tests, by package; what they share is in `tests.house`."""
