"""A cloud that stays: it queues runs and starts a process for each. Agents compute them."""
