"""Models by name or from a ``config.json``."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.spec.errors import CheckpointError
from engine.spec.families.family import Family
from engine.spec.families.llama import LLAMA
from engine.spec.families.mistral import MISTRAL
from engine.spec.families.qwen2 import QWEN2
from engine.spec.families.qwen3 import QWEN3
from engine.spec.model import DType, ModelConfig
from engine.spec.names import did_you_mean
from tuner.spec.catalog import Shelf
from tuner.spec.documents import read_file
from tuner.spec.errors import TunerError

CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class _Size:
    """What differs between the sizes of one series, as their ``config.json`` states it."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int = 128
    vocab: int
    is_tied: bool = False


@dataclass(frozen=True, kw_only=True)
class _Series:
    """What all published sizes of one series share.

    ``checkpoint``: how its publisher names the tuned weights of a size.
    """

    family: Family
    checkpoint: str
    max_positions: int
    rope_theta: float


# fmt: off
LLAMA_31 = _Series(family=LLAMA, max_positions=131_072, rope_theta=500_000.0,
                   checkpoint="meta-llama/Llama-3.1-{size}B-Instruct")
LLAMA_33 = replace(LLAMA_31, checkpoint="meta-llama/Llama-3.3-{size}B-Instruct")
LLAMA_2 = _Series(family=LLAMA, max_positions=4096, rope_theta=10_000.0,
                  checkpoint="meta-llama/Llama-2-{size}b-chat-hf")
QWEN_25 = _Series(family=QWEN2, max_positions=32_768, rope_theta=1_000_000.0,
                  checkpoint="Qwen/Qwen2.5-{size}B-Instruct")
QWEN_3 = _Series(family=QWEN3, max_positions=40_960, rope_theta=1_000_000.0,
                 checkpoint="Qwen/Qwen3-{size}B")
MISTRAL_V03 = _Series(family=MISTRAL, max_positions=32_768, rope_theta=1_000_000.0,
                      checkpoint="mistralai/Mistral-{size}B-Instruct-v0.3")
MISTRAL_SMALL = _Series(family=MISTRAL, max_positions=32_768, rope_theta=100_000_000.0,
                        checkpoint="mistralai/Mistral-Small-{size}B-Instruct-2501")

SERIES: dict[str, tuple[_Series, dict[str, _Size]]] = {
    "llama-3.1": (LLAMA_31, {
        "8b": _Size(layers=32, hidden=4096, ffn=14_336, heads=32, kv_heads=8, vocab=128_256),
        "70b": _Size(layers=80, hidden=8192, ffn=28_672, heads=64, kv_heads=8, vocab=128_256),
        "405b": _Size(layers=126, hidden=16_384, ffn=53_248, heads=128, kv_heads=8, vocab=128_256),
    }),
    "llama-3.3": (LLAMA_33, {
        "70b": _Size(layers=80, hidden=8192, ffn=28_672, heads=64, kv_heads=8, vocab=128_256),
    }),
    "llama-2": (LLAMA_2, {
        "7b": _Size(layers=32, hidden=4096, ffn=11_008, heads=32, kv_heads=32, vocab=32_000),
        "13b": _Size(layers=40, hidden=5120, ffn=13_824, heads=40, kv_heads=40, vocab=32_000),
        "70b": _Size(layers=80, hidden=8192, ffn=28_672, heads=64, kv_heads=8, vocab=32_000),
    }),
    "qwen2.5": (QWEN_25, {
        "0.5b": _Size(layers=24, hidden=896, ffn=4864, heads=14, kv_heads=2, head_dim=64,
                      vocab=151_936, is_tied=True),
        "1.5b": _Size(layers=28, hidden=1536, ffn=8960, heads=12, kv_heads=2, vocab=151_936,
                      is_tied=True),
        "3b": _Size(layers=36, hidden=2048, ffn=11_008, heads=16, kv_heads=2, vocab=151_936,
                    is_tied=True),
        "7b": _Size(layers=28, hidden=3584, ffn=18_944, heads=28, kv_heads=4, vocab=152_064),
        "14b": _Size(layers=48, hidden=5120, ffn=13_824, heads=40, kv_heads=8, vocab=152_064),
        "32b": _Size(layers=64, hidden=5120, ffn=27_648, heads=40, kv_heads=8, vocab=152_064),
        "72b": _Size(layers=80, hidden=8192, ffn=29_568, heads=64, kv_heads=8, vocab=152_064),
    }),
    "qwen3": (QWEN_3, {
        "0.6b": _Size(layers=28, hidden=1024, ffn=3072, heads=16, kv_heads=8, vocab=151_936,
                      is_tied=True),
        "1.7b": _Size(layers=28, hidden=2048, ffn=6144, heads=16, kv_heads=8, vocab=151_936,
                      is_tied=True),
        "4b": _Size(layers=36, hidden=2560, ffn=9728, heads=32, kv_heads=8, vocab=151_936,
                    is_tied=True),
        "8b": _Size(layers=36, hidden=4096, ffn=12_288, heads=32, kv_heads=8, vocab=151_936),
        "14b": _Size(layers=40, hidden=5120, ffn=17_408, heads=40, kv_heads=8, vocab=151_936),
        "32b": _Size(layers=64, hidden=5120, ffn=25_600, heads=64, kv_heads=8, vocab=151_936),
    }),
    "mistral": (MISTRAL_V03, {
        "7b": _Size(layers=32, hidden=4096, ffn=14_336, heads=32, kv_heads=8, vocab=32_768),
    }),
    "mistral-small": (MISTRAL_SMALL, {
        "24b": _Size(layers=40, hidden=5120, ffn=32_768, heads=32, kv_heads=8, vocab=131_072),
    }),
}
# fmt: on
# What publishers put around a size's name: of no meaning for shapes.
_PREFIX = "meta-"
_SUFFIX = re.compile(
    r"instruct|chat|hf|base|fp8|dynamic|awq|gptq|int4|quantized\.w4a16|block|v0\.3|\d{4}"
)
# No publisher's name is as long; and a file system has no longer one.
MOST_NAME = 250
# But these say how its weights are quantised; the first that fits. Qwen publishes Qwen3 in fp8 with
# a scale per block of 128x128 weights.
_QUANTISED = {
    "fp8-block": re.compile(r"qwen3-[\w.-]*-fp8(?!-dynamic)\b|-fp8-block\b"),
    "fp8": re.compile(r"-fp8\b"),
    "int4": re.compile(r"-(awq|gptq|int4|quantized\.w4a16)\b"),
}


def list_models() -> list[str]:
    """Names of all described models, the user's last."""
    built_in = [f"{series}-{size}" for series, (_, sizes) in SERIES.items() for size in sizes]
    return [*built_in, *(name for name in MODELS.list_own() if name not in built_in)]


def find_model(name: str) -> ModelConfig | None:
    """The described model of ``name``: ``llama-3.1-70b``, or as published, as in
    ``meta-llama/Llama-3.1-70B-Instruct``; None when there is none."""
    found = _find_size(name)
    if found is None:
        return None
    series, size = found
    return ModelConfig(
        model_type=series.family.model_type,
        num_layers=size.layers,
        hidden_size=size.hidden,
        ffn_size=size.ffn,
        num_heads=size.heads,
        num_kv_heads=size.kv_heads,
        head_dim=size.head_dim,
        vocab_size=size.vocab,
        max_positions=series.max_positions,
        rope_theta=series.rope_theta,
        tie_embeddings=size.is_tied,
        qkv_bias=series.family.qkv_bias,
        qk_norm=series.family.qk_norm,
        dtype=DType.BFLOAT16,
    )


def find_checkpoint(name: str) -> str | None:
    """``meta-llama/Llama-3.1-70B-Instruct`` of ``llama-3.1-70b``; None for the user's own models
    and where nothing was published under that name."""
    found = None if _find_config(name) is not None else _find_size(name)
    if found is None:
        return None
    return found[0].checkpoint.format(size=_short(name).rpartition("-")[2].removesuffix("b"))


def _find_size(name: str) -> tuple[_Series, _Size] | None:
    if len(name) > MOST_NAME:
        return None
    prefix, _, size_name = _short(name).rpartition("-")
    series, sizes = SERIES.get(prefix, (None, {}))
    size = sizes.get(size_name)
    return None if series is None or size is None else (series, size)


def _short(name: str) -> str:
    """``llama-3.1-70b`` of ``meta-llama/Llama-3.1-70B-Instruct``."""
    short = name.rpartition("/")[2].lower().removeprefix(_PREFIX)
    while True:
        rest, dash, last = short.rpartition("-")
        if not dash or _SUFFIX.fullmatch(last) is None:
            return short
        short = rest


def _is_built_in(name: str) -> bool:
    return find_model(name) is not None


MODELS = Shelf(noun="model", sub_folder="models", is_built_in=_is_built_in)


def load_model(text: str) -> ModelConfig:
    """A model by name, or from a folder with ``config.json`` or that file itself; its weights may
    be quantised.

    Raises:
        TunerError: neither a known name nor a readable description.
    """
    config = _find_config(text)
    if config is not None:
        try:
            if config.name == CONFIG:
                return ModelConfig.from_dir(config.parent, shape_only=True)
            return ModelConfig.from_json(read_file(config), where=str(config), shape_only=True)
        except CheckpointError as error:
            raise TunerError(str(error)) from error
    found = find_model(text)
    if found is None:
        known = list_models()
        if len(text) > MOST_NAME:
            raise TunerError(f"model {text[:MOST_NAME]!r}...: no name is as long")
        raise TunerError(
            f"model {text!r} is no folder with {CONFIG} and no known name"
            f"{did_you_mean(_short(text), known)}; known are {', '.join(known)}"
        )
    return found


def find_quantisation(text: str) -> str | None:
    """``int4``, ``fp8`` or ``fp8-block``, where the model's ``config.json`` or its published name
    says that its weights are quantised so; None where they are not.

    Raises:
        TunerError: they are quantised in another way.
    """
    config = _find_config(text)
    if config is None:
        named = (word for word, form in _QUANTISED.items() if form.search(text.lower()))
        return next(named, None)
    entry = read_file(config).get("quantization_config")
    if not entry:
        return None
    found = _quantisation(entry) if isinstance(entry, dict) else None
    if found is None:
        method = entry.get("quant_method") if isinstance(entry, dict) else entry
        raise TunerError(
            f"{config}: weights quantised by {str(method)[:60]!r} in this form are not described; "
            "name the nearest format, as in int4 or fp8"
        )
    return found


def _find_config(text: str) -> Path | None:
    """The ``config.json`` of a folder, or the user's description of that name."""
    path = Path(text)
    folder = path.parent if path.name == CONFIG else path
    try:
        is_there = (folder / CONFIG).exists()
    except OSError:  # as where a name is longer than one may be
        is_there = False
    return folder / CONFIG if is_there else MODELS.find_own(text.lower())


def _quantisation(entry: dict[str, Any]) -> str | None:
    match entry:
        case {"quant_method": "fp8"}:
            return "fp8-block" if entry.get("weight_block_size") else "fp8"
        case {"quant_method": "awq" | "gptq", "bits": 4} | {"quant_method": "awq", "w_bit": 4}:
            return "int4"
        case {"quant_method": "compressed-tensors", "config_groups": {**groups}}:
            kinds = {_compressed(group) for group in groups.values()}
            return kinds.pop() if len(kinds) == 1 else None
        case _:
            return None


def _compressed(group: Any) -> str | None:
    match group:
        case {"weights": {"num_bits": 4, "type": "int"}}:
            return "int4"
        case {"weights": {"num_bits": 8, "type": "float", "strategy": "block"}}:
            return "fp8-block"
        case {"weights": {"num_bits": 8, "type": "float"}}:
            return "fp8"
        case _:
            return None
