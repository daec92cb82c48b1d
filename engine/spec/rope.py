"""How a model's positions turn its heads, as ``config.json`` says; no torch.

The rules are those of ``transformers``: ``engine/models/rope.py`` computes them, and its test
compares both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from engine.spec.errors import CheckpointError
from engine.spec.reader import ConfigReader

DEFAULT_THETA = 10_000.0
PARAMETERS = "rope_parameters"
OLDER_PARAMETERS = "rope_scaling"
ORIGINAL = "original_max_position_embeddings"
# Newer files may state the rope of each kind of layer; here every layer is of the first kind.
LAYER_KINDS = ("full_attention", "sliding_attention")
KNOWN_PARAMETERS = frozenset(
    {
        "rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", ORIGINAL,
        "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
        "short_factor", "long_factor", "low_freq_factor", "high_freq_factor", "finetuned",
    }
)  # fmt: skip
YARN_BETA_FAST, YARN_BETA_SLOW = 32.0, 1.0
# Factors are above this: dividing by less would leave the range of floats.
TINY = 1e-6


class RopeKind(StrEnum):
    """The ways of stretching positions beyond the context of the training."""

    LLAMA3 = "llama3"
    LINEAR = "linear"
    DYNAMIC = "dynamic"
    YARN = "yarn"
    LONGROPE = "longrope"


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Frequency scaling; each kind uses its own of these.

    ``attention_factor`` scales cosines and sines. ``short_factors`` and ``long_factors`` (one a
    frequency) divide the frequencies of contexts up to ``original_max_positions`` and beyond.
    ``dynamic`` changes only contexts beyond the model's own, which no engine runs.
    """

    kind: RopeKind = RopeKind.LLAMA3
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 0
    attention_factor: float = 1.0
    beta_fast: float = YARN_BETA_FAST
    beta_slow: float = YARN_BETA_SLOW
    is_truncated: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Base, scaling and how many positions the two are made for."""

    theta: float
    scaling: RopeScaling | None
    max_positions: int


def read_rope(config: ConfigReader, *, head_dim: int, max_positions: int) -> Rope:
    """The rope of a ``config.json``; newer files keep all of it under ``rope_parameters``.

    Raises:
        CheckpointError: a kind that is not known, or a value that it needs or that is wrong.
    """
    parameters = _parameters(config)
    theta_of = config if parameters.find("rope_theta") is None else parameters
    theta = theta_of.number("rope_theta", DEFAULT_THETA, above=1.0)
    _refuse_unknown(config, parameters)
    kind = _kind(parameters)
    if kind is None:
        return Rope(theta=theta, scaling=None, max_positions=max_positions)
    # As transformers: what stands beside the parameters goes before what stands in them.
    original_of = parameters if config.find(ORIGINAL) is None else config
    original = original_of.integer(ORIGINAL, max_positions)
    match kind:
        case RopeKind.LLAMA3:
            scaling = RopeScaling(
                factor=parameters.number("factor", above=TINY),
                low_freq_factor=parameters.number("low_freq_factor", above=TINY),
                high_freq_factor=parameters.number("high_freq_factor", above=TINY),
                original_max_positions=original,
            )
            if scaling.high_freq_factor - scaling.low_freq_factor <= TINY:
                raise CheckpointError(
                    f"{parameters.where}: high_freq_factor {scaling.high_freq_factor:g} is not "
                    f"above low_freq_factor {scaling.low_freq_factor:g}"
                )
        case RopeKind.LINEAR | RopeKind.DYNAMIC:
            scaling = RopeScaling(kind=kind, factor=parameters.number("factor", above=TINY))
        case RopeKind.YARN:
            scaling = _yarn(parameters, original, max_positions)
            stretched = min(int(original * scaling.factor), 2**31 - 1)
            max_positions = max(max_positions, stretched)
        case RopeKind.LONGROPE:
            scaling = _longrope(parameters, original, max_positions, head_dim)
    return Rope(theta=theta, scaling=scaling, max_positions=max_positions)


def _parameters(config: ConfigReader) -> ConfigReader:
    # As transformers: the older key has the last word.
    found = config.object(OLDER_PARAMETERS) or config.object(PARAMETERS)
    if found is None:
        return ConfigReader(raw={}, where=config.where)
    if any(name in found.raw for name in LAYER_KINDS):
        nested = found.object(LAYER_KINDS[0])
        if nested is None:
            raise CheckpointError(f"{found.where}: {LAYER_KINDS[0]} is missing")
        return nested
    return found


def _refuse_unknown(config: ConfigReader, parameters: ConfigReader) -> None:
    for reader in (config, parameters):
        part = reader.number("partial_rotary_factor", 1.0)
        if part != 1.0:
            raise CheckpointError(
                f"{reader.where}: partial_rotary_factor {part:g} is not supported (1)"
            )
    for key, value in parameters.raw.items():
        if key not in KNOWN_PARAMETERS and value not in (None, False):
            raise CheckpointError(f"{parameters.where}: key {key!r} is not known")


def _kind(parameters: ConfigReader) -> RopeKind | None:
    word = parameters.word("rope_type", parameters.word("type", "default"))
    if word == "default":
        return None
    if word not in set(RopeKind):
        known = ", ".join(("default", *RopeKind))
        raise CheckpointError(
            f"{parameters.where}: rope type {word!r} is not supported; supported are {known}"
        )
    return RopeKind(word)


def _yarn(parameters: ConfigReader, original: int, max_positions: int) -> RopeScaling:
    """YaRN (arXiv 2309.00071): the attention factor is the paper's unless it is given."""
    factor = parameters.number("factor", max_positions / original, above=TINY)
    mscale = parameters.number("mscale", 0.0)
    mscale_all = parameters.number("mscale_all_dim", 0.0)
    suggested = _mscale(factor, 1.0)
    if mscale and mscale_all:
        divisor = _mscale(factor, mscale_all)
        if divisor == 0:
            raise CheckpointError(f"{parameters.where}: mscale_all_dim {mscale_all:g} gives 0")
        suggested = _mscale(factor, mscale) / divisor
    scaling = RopeScaling(
        kind=RopeKind.YARN,
        factor=factor,
        original_max_positions=original,
        attention_factor=parameters.number("attention_factor", suggested),
        # As transformers: 0 means the default, too.
        beta_fast=parameters.number("beta_fast", 0.0) or YARN_BETA_FAST,
        beta_slow=parameters.number("beta_slow", 0.0) or YARN_BETA_SLOW,
        is_truncated=parameters.flag("truncate", True),
    )
    if not TINY < scaling.beta_slow <= scaling.beta_fast < 1 / TINY:
        raise CheckpointError(
            f"{parameters.where}: beta_slow {scaling.beta_slow:g} and beta_fast "
            f"{scaling.beta_fast:g} are not turns above 0, the slow ones first"
        )
    return scaling


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(
    parameters: ConfigReader, original: int, max_positions: int, head_dim: int
) -> RopeScaling:
    """LongRoPE (arXiv 2402.13753): the attention factor follows from how far it stretches."""
    factor = parameters.number("factor", max_positions / original, above=TINY)
    suggested = 1.0
    if factor > 1 and original > 1:
        suggested = math.sqrt(1 + math.log(factor) / math.log(original))
    return RopeScaling(
        kind=RopeKind.LONGROPE,
        factor=factor,
        original_max_positions=original,
        attention_factor=parameters.number("attention_factor", suggested),
        short_factors=parameters.numbers("short_factor", count=head_dim // 2),
        long_factors=parameters.numbers("long_factor", count=head_dim // 2),
    )
