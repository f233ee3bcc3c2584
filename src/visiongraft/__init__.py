"""visiongraft grafts new abilities onto pretrained vision models."""

__version__ = "0.1.0"
