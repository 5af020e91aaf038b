"""Mixtures: which rows of the corpora a training set takes, and the audit that nothing leaks."""
