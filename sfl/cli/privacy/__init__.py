"""How much of a device's text its edge can read from what crosses the cut, by attacks that try."""

from sfl.cli.privacy.experiment import Experiment, Finding, Findings, measure, plan

__all__ = ["Experiment", "Finding", "Findings", "measure", "plan"]
