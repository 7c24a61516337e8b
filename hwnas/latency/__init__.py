"""Latency tables: measured ratios with their environment, calibration on whole networks, prediction with an interval."""
