"""Pictures of answers: what is drawn, told once, and drawn as a page or as a still."""
