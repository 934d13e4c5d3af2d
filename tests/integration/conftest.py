"""Brokers of these tests start from a cache of Kafka's classes."""

from tests.support.java_classes import java_class_cache  # noqa: F401 - a fixture for every test here
