"""Blocks that two or more grafts share."""
