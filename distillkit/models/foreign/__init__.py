"""Files of other projects, read as data: pickles are interpreted by an allow-list reader and never executed."""
