"""The device process: first blocks, private data, one connection out."""
