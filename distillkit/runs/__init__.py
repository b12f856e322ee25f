"""One run from its configuration to its closing table."""
