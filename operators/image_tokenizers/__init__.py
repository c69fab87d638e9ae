"""Image tokenizers: one file per system."""
