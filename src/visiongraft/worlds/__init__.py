"""Procedural and bundled data for the small-scale studies."""
