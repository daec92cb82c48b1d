"""Values that describe what an engine gets and gives: plans, models, requests, steps, samples."""
