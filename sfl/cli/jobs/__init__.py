"""Commands for runs of a service, or in a folder: submit, list, status, watch, logs, stop."""
