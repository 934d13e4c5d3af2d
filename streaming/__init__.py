"""From Kafka to packed training batches: decode, validate, join histories and attributes, keep positions.

Knows nothing of the model or of ranks: what leaves is an Arrow RecordBatch (`schema.TRAINING_BATCH_SCHEMA`).
"""
