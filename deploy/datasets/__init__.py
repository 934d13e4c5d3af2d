"""Data sets: fetching and reading them."""
