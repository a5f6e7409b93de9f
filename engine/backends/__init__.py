"""One folder for each runtime: it builds engines, runs them and says what they do."""
