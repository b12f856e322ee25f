"""Families of models: how each is built, loaded and converted; and the store that resolves their names."""
