"""Mixtures: which rows of the corpora a training set takes, and the audit that nothing leaks."""

from clip_mixtures.mixtures.published import published_mixture

__all__ = ["published_mixture"]
