"""Encoder and decoder: images to features to words."""
