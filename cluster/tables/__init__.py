"""Embedding rows of unbounded ids: sharded by bucket, admitted, expired and evicted, updated by fused optimizers."""
