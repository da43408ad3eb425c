"""Conversations at work: a session of another kind, without a round, optimizer or gradient."""
