"""Model folders, spans, precision, memory."""
