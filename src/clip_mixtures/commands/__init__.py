"""The command line: one module for each group of commands, each a thin layer over the library."""
