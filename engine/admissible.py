"""What an engine accepts as settings, and what it says of those that do less than they seem to."""

from __future__ import annotations

from collections.abc import Sequence

from engine.modes.table import ModeTable
from engine.policy.document import check_envelope
from engine.spec.config import EngineConfig, num_kv_blocks
from engine.spec.errors import EngineError, PolicyError
from engine.spec.inventory import Inventory
from engine.spec.model import ModelConfig
from engine.spec.modes import ENDS, TABLE
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings


def check_settings(
    settings: Settings, *, config: EngineConfig, model: ModelConfig, inventory: Inventory
) -> None:
    """Refuse settings that this engine could not run.

    Raises:
        EngineError: a context that the model has no positions for.
        PlanError: the model, the devices or their memory cannot run the plan.
        PolicyError: caps above the envelope, or modes that what is imitated does not have.
    """
    _check_context(config.max_model_len, model)
    inventory.check(settings.plan, model)
    num_kv_blocks(config, model, settings.plan)
    between = [mode for mode in settings.modes_in_use if mode not in ENDS]
    if between and not config.has_rungs:
        raise PolicyError(
            f"mode {between[0]}: what this engine imitates steps in base and shift only; "
            "restrict shift.rungs to them"
        )
    check_envelope(settings.caps, config.start_envelope)


def _check_context(max_model_len: int | None, model: ModelConfig) -> None:
    """Kernels read the angles of a token's position without a look at how many there are."""
    if max_model_len is not None and not 1 <= max_model_len <= model.max_positions:
        raise EngineError(
            f"max_model_len={max_model_len}: must be in 1..{model.max_positions}, the positions "
            "that config.json says the model has"
        )


def warnings_of(
    settings: Settings, *, held: ParallelPlan, tables: Sequence[ModeTable | None]
) -> list[str]:
    """Warnings for whoever puts ``settings`` in force; ``held`` is the plan whose shards ranks
    hold."""
    found = settings.warnings
    if settings.plan != held:
        found.append(
            f"ranks still hold the shards of {held}, whose room for KV and mode table stay; for "
            f"those of {settings.plan} start the engine with it"
        )
    if settings.pin == TABLE and settings.plan.shift and not all(tables):
        found.append(
            "no mode table was measured when the ranks started: the threshold "
            f"{settings.threshold_tokens} decides until they start again"
        )
    return found
