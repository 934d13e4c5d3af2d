"""Sets of files that are either complete or absent, on a disk or in an object store."""
