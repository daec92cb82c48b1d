"""OpenAI-compatible serving of one engine, its metrics and its knobs."""
