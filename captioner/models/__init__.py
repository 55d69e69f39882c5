"""Images to features to words."""
