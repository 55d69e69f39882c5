"""From a step function to captions: beam search, sampling, and constraints on both."""
