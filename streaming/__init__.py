"""From Kafka to packed training batches: decode, validate, join histories and attributes, keep positions.

Knows nothing of the model or of ranks: the output is an Arrow RecordBatch (`schema.TRAINING_BATCH_SCHEMA`).
"""
