"""Beam search, sampling and constraints over a step function."""
