"""Vision towers of transformers."""
