"""Who a node is, by certificate: names, a node's own files, and the authority that signs them."""
