"""Configurations that differ in some settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engine.policy.document import EnginePolicy
from engine.spec.config import EngineConfig


def with_settings(config: EngineConfig, **changes: Any) -> EngineConfig:
    """``config`` with other settings; ``changes`` are fields of ``Settings``."""
    return replace(config, settings=replace(config.settings, **changes))


def policy_with(
    policy: EnginePolicy, *, version: int | None = None, **changes: Any
) -> EnginePolicy:
    """``policy`` with other settings; ``changes`` are fields of ``Settings``."""
    settings = replace(policy.settings, **changes)
    return EnginePolicy(settings=settings, version=policy.version if version is None else version)
