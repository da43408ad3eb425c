"""Faults on real processes: nodes killed or stopped in each phase of a run."""
