"""The policy document of one engine, its knobs, and what a change of each costs."""
