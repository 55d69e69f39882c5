"""Captioning of many images in one or several processes."""
