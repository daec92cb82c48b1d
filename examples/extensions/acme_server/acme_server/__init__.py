"""The profile of a serving system that Gearshift does not know by itself."""

from pathlib import Path


def profile() -> Path:
    return Path(__file__).parent / "acme.json"
