"""What this machine has and lacks: one check per part, each with a way out."""
