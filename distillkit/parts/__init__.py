"""What several methods share; part of the public API."""
