"""Messages on the wire: protobuf, frames of at most 1 MiB, checksums, the contract."""
