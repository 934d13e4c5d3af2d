"""What every verb shares: settings, errors, the terminal, signals."""
