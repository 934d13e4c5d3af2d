"""What comes in from the stream and the catalogue."""
