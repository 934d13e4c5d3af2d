"""Parts that all verbs share: settings, errors, the terminal, signals."""
