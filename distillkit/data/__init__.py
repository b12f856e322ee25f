"""Sources of training data: noise-image pairs and real images."""
