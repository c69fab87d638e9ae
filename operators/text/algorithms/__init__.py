"""Algorithms of text operators, without operators."""
