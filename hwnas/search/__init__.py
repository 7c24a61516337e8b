"""Searches: which architectures to score next. The score is the caller's function, so nothing here needs torch."""
