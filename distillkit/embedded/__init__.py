"""What ships in the package, offered by the same hooks as anyone's plugin: no GPU, no download."""
