"""Pictures of answers: described once, and drawn as an interactive page or as a still image."""
