"""Bases with grafts: one room a paper."""
