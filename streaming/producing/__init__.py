"""Events and catalogues into Kafka."""
