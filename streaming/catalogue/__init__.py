"""Items and users, from topics or files."""
