"""Model code and checkpoint loading."""
