"""The embedded extractor of colour images: features of a small classifier, without any download."""
