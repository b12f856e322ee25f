"""Teachers by name: resolved, fetched, converted, verified."""
