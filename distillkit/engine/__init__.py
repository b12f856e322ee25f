"""The training loop and what surrounds it: optimisers, checkpoints, metrics, cost, signals."""
