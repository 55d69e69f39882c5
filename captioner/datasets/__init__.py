"""A data set as a thing one works on: inspect, convert, fetch, draw."""
