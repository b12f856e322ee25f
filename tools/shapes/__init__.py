"""What makes and judges the shipped files of the embedded teacher `shapes` that the product does not make."""
