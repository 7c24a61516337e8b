"""hwnas: compile a search space into the best network that a device runs within a latency budget."""
