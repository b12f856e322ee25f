"""Network architectures that teachers and students are made of."""
