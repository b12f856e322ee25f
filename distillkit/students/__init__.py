"""The product of a run: a student that knows how to be sampled."""
