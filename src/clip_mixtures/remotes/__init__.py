"""DVC remotes: whether each object that the pipeline records is there, unharmed, and mending."""
