"""`sfl serve`: an edge and its devices, or one device, that answer with a model."""
