"""Trainings of a benchmark side by side: processes that take one after the other, and the one that hands them out."""
