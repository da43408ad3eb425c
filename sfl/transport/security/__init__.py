"""Who a peer is: certificates, signatures, doors, and why a handshake failed."""
