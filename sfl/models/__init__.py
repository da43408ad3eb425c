"""Model folders and spans: the part of a model that one node holds."""
