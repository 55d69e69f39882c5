"""Reads files on disk into batches."""
