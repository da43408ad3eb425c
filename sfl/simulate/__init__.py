"""A run without its model: the real coordinator, orders and planners on a virtual clock."""
