"""Statistics and who reads them."""
