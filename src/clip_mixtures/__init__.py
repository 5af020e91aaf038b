"""clip-mixtures: controlled data mixtures for studying when and how CLIP generalises."""

__version__ = "0.1.0"
