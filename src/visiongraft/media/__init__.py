"""Reading and writing images and files."""
