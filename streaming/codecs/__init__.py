"""Messages and files into columns of events, within bounds."""
