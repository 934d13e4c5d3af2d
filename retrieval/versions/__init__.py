"""Index versions: built, gated, published, searched."""
