"""The stream and the model as one: what a checkpoint holds, how it is written, and what explains it."""
