"""Engines whose steps only take time, for tests of load driving."""

from __future__ import annotations

import json
from pathlib import Path

from engine.engine import Engine
from engine.nvml.monitor import DeviceMonitor
from engine.spec.config import EngineConfig, ExecutorKind
from engine.spec.settings import Caps, Settings
from tests.engine.paced import ConstantTimer


def paced_engine(
    folder: Path, *, max_queue: int | None = None, monitor: DeviceMonitor | None = None
) -> Engine:
    """A simulated engine with a vocabulary of 500 and a context of 512, 2 ms a step."""
    config = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 500,
        "max_position_embeddings": 512,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return Engine(
        EngineConfig(
            model_dir=folder,
            executor=ExecutorKind.SIMULATED,
            num_kv_blocks=512,
            settings=Settings(
                caps=Caps(max_num_seqs=16, max_num_batched_tokens=256, max_queue=max_queue)
            ),
        ),
        timer_factory=ConstantTimer,
        monitor=monitor,
    )
