"""Clients: consumers, fetches, deliveries, topics, outages."""
