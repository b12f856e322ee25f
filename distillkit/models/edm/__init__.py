"""EDM's networks (Karras et al. 2022): built from their constructors' arguments, read from their pickles."""
