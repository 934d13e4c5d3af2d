"""The batches of a step: admission, duplicates, packing."""
