"""Where a cloud keeps what has to outlive it: databases, and the files of a run."""
