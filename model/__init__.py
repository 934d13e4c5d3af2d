"""CL-EPIDTN and its relatives on plain tensors; knows no ranks, streams, indexes or settings files."""
