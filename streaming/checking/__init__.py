"""Says what would be trained from a sample of the topics or files, and which setting to change."""
