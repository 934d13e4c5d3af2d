"""Parts of a checkpoint, a file each."""
