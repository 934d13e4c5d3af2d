"""Dead letters: writing rows that could not be used, and replaying them."""
