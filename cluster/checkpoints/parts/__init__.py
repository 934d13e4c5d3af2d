"""Parts of a checkpoint, one per file."""
