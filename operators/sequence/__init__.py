"""Sequences of ids: interleaving under one vocabulary, filters on length."""
