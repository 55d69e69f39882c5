"""Captioning many images in many processes."""
