"""What this machine can do for a run: looked at, measured, and said with a fix for each problem."""
