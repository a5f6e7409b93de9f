"""The linter against the runtimes that it speaks of."""
