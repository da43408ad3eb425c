"""One step each, in order; who changes a table adds the next."""
