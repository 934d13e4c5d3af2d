"""CL-EPIDTN and its relatives on plain tensors; knows nothing of ranks, streams, indexes or settings files."""
