"""A step function to captions: search and constraints."""
