"""Keys and values of conversations: pages, and the attention that reads them."""
