"""Interleaving token fields into sequences."""
