"""Scoring generators: protocols, features, estimators."""
