"""Where a run's events come from: Kafka or Parquet, by partition."""
