"""A file that breaks its own format."""


class Malformed(Exception):
    """What is wrong and in which line; becomes a DataError once the setting at fault is known."""
