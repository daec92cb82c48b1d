"""The OpenAI-compatible server and the knob plane."""
