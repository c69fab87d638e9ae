"""The golden models of each family of image tokenizers."""
