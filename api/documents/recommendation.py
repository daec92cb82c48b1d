"""Reading the tuner's recommendation document. Pure functions, no database."""

from __future__ import annotations

import copy

from engine.spec.settings import Caps, Settings
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


def within_envelope(document: Json | None, envelope: Caps, *parts: str) -> Json | None:
    """A schedule or capacity table whose caps are cut to what the engine was started with."""
    if document is None:
        return None
    cut = copy.deepcopy(document)
    for entry in (entry for part in parts for entry in cut.get(part) or ()):
        caps = entry["settings"]["caps"]
        for name in ("max_num_seqs", "max_num_batched_tokens"):
            caps[name] = min(caps[name], getattr(envelope, name))
    return cut
