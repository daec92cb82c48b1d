"""Long or large work of a request, done in a separate process under limits."""
