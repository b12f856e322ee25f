"""What makes the shipped files of the embedded teacher `shapes`."""
