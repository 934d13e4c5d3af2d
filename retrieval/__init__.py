"""The item index: Faiss IVF versions that are built beside the live one, gated by recall, promoted by a pointer.

Knows vectors and ids; knows nothing of models, streams or ranks.
"""
