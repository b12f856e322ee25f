"""Loading, cataloguing and training of teachers."""
