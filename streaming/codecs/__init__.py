"""Decodes messages and files into columns of events, within size limits."""
