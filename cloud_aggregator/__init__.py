"""The cloud process: rounds and aggregation."""
