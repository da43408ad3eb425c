"""A larger model on the edge teaches the one that is trained."""
