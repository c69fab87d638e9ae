"""Encoders: images to features, with what reducers want to know of them."""
