"""Measuring latency: paired timing against the anchor, the environment it was done in, and the profiler above both."""
