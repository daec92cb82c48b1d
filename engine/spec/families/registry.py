"""Every family the engine runs."""

from __future__ import annotations

from engine.spec.errors import CheckpointError
from engine.spec.families.family import Family
from engine.spec.families.llama import LLAMA
from engine.spec.families.mistral import MISTRAL
from engine.spec.families.qwen2 import QWEN2
from engine.spec.families.qwen3 import QWEN3

FAMILIES: tuple[Family, ...] = (LLAMA, QWEN2, QWEN3, MISTRAL)


def get_family(model_type: str) -> Family:
    """The family whose ``config.json`` says ``model_type``.

    Raises:
        CheckpointError: no such family; the message names those there are.
    """
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    known = ", ".join(family.model_type for family in FAMILIES)
    raise CheckpointError(f"model_type {model_type!r} is not supported; supported are {known}")
