"""CUDA graphs of ours: what is recorded once and replayed every round, and the watch on waits for the device."""
