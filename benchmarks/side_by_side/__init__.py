"""One job, done by several tools as their users would do it: lines typed, seconds, memory, and what came of it."""
