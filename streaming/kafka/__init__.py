"""Kafka clients: consumers, fetches, deliveries, topics, outages."""
