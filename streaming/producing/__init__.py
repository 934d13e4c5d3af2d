"""Sends events and catalogues to Kafka."""
