"""Merging the adapters of a round: pure functions of files, numpy only.

A further strategy is one file, and one line in `traits.STRATEGIES`. Importing this package imports
no numpy, as settings ask for a strategy's traits.
"""
