"""The worker loop: global steps on the stream, checkpoints, and index versions."""
