"""Runs in a queue and who computes them: the decisions of a service, without clock or socket."""
