"""Embedding rows of endless ids: sharded by bucket, admitted, expired and evicted, updated by fused optimizers."""
