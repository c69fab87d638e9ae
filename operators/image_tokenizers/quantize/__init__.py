"""Quantizers, written once and shared by the tokenizers."""
