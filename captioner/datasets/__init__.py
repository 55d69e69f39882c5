"""Inspect, convert, download and draw data sets."""
