"""Tuning every entry of a suite with equal care: as many settings for each, at the same budget."""
