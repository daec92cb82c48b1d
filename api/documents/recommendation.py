"""Reading the tuner's recommendation document. Pure functions, no database."""

from __future__ import annotations

from engine.spec.settings import Settings
from store.models.base import Json


def recommended_settings(document: Json) -> Settings:
    """The settings that a recommendation stands for.

    Raises:
        PolicyError: settings that cannot be read.
    """
    return Settings.from_json(document["settings"])


def predicted_for(recommendation: Json, settings: Settings) -> Json | None:
    """What a recommendation predicts, where an engine is to run just what it recommends."""
    if recommendation.get("settings") != settings.to_json():
        return None
    return {
        "fidelity": recommendation.get("fidelity"),
        "metrics": recommendation.get("predicted"),
    }
