"""The embedded world of shapes: pictures that a program draws, and sentences that say what is on them."""
