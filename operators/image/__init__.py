"""Image decoding and geometry."""
