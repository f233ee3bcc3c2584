"""Certified feature smoothing (arXiv 2601.16200): any vision encoder, with a certificate on its features."""
