"""The verb evaluate."""
