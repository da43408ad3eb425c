"""Inputs that no honest peer sends: seeded, counted, repeatable. `python -m tests.fuzz --help`."""
