"""Animated meshes from video (ActionMesh, arXiv 2601.16148): a 3D latent diffusion model that learns time, and one topology."""
