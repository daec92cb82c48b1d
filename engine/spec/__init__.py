"""What one may say to an engine and hears of it: plans, models, requests, steps, measurements."""
