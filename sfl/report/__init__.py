"""What a run shows: its status while it runs, its numbers and its report afterwards."""
