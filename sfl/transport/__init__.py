"""gRPC only here: channels, servers, credentials, framing, and the map of errors to statuses."""
