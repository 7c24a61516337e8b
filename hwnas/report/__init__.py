"""Pictures and pages of what was measured; what draws them is imported when it is needed."""
