"""A device that answers with the model it has a part of."""
