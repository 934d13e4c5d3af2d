"""Batches of a step: which events, which are admitted."""
