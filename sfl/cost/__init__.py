"""What training costs, foretold from numbers alone: seconds, bytes, joules and memory."""
