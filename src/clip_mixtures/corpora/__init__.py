"""Corpora: readers that list every image once, with its place in the archive and its captions."""
