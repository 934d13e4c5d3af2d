"""Faiss indexes: coarse quantizer, inverted lists, exact search, GPUs."""
