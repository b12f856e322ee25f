"""A new plugin project: complete, tested and ready to be changed."""
