"""A user's catalog folder, made of copies of built-in descriptions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tuner.backends.backend import BACKENDS
from tuner.hardware.device import DEVICES
from tuner.hardware.links import LINKS
from tuner.spec.catalog import FileShelf

MODEL_CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 32_000,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}


def write(catalog: Path, sub_folder: str, name: str, document: dict[str, Any] | str) -> Path:
    """Put one file into the catalog."""
    path = catalog / sub_folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def write_like(
    shelf: FileShelf, catalog: Path, built_in: str, name: str, /, **changes: Any
) -> Path:
    """Put a copy of a built-in description into the catalog, with another name and changes."""
    raw = json.loads((shelf.folder / f"{built_in}.json").read_text())
    return write(catalog, shelf.sub_folder, name, {**raw, "name": name, **changes})


def write_catalog(catalog: Path) -> Path:
    """One description of each kind: device ``chip9`` over link ``fastlink``, backend ``ours``, and
    models ``mini`` (a file) and ``midi`` (a folder)."""
    write_like(LINKS, catalog, "pcie5", "fastlink", bytes_per_s_per_direction=100e9)
    write_like(DEVICES, catalog, "mi325x", "chip9", link="fastlink", memory_bytes=64e9)
    write_like(BACKENDS, catalog, "gearshift", "ours")
    write(catalog, "models", "mini", MODEL_CONFIG)
    write(catalog, "models/midi", "config", {**MODEL_CONFIG, "num_hidden_layers": 8})
    return catalog
