"""The distributed system: Ray Train workers, sharded embedding rows, checkpoints, publishing.

Composes streaming, model and retrieval, none of which knows the others.
"""
