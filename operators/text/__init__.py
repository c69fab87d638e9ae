"""Text tokenizers and text filters."""
