"""A stage runs a span: the edge's sessions, the device's flights, and the link between them."""
