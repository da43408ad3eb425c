"""A process on its machine: how it starts, speaks, rests and ends; its files and certificates."""
