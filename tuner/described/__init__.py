"""Hardware that is not here: nodes from words, their simulation, launch commands, energy."""
