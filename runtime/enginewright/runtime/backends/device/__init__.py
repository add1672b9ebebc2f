"""What engines on an NVIDIA GPU share: steps, their memory, and the pool of the cache."""
