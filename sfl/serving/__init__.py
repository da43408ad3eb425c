"""Decisions of serving: what a step asks for, who has room, which number a token is drawn by.

Pure: no clock, socket, file, torch or numpy. The time is an argument.
"""
