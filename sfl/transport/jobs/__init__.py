"""Between a service and those who use it: operators, and the agents that compute its runs."""
