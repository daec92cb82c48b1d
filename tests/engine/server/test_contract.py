"""The engine's server does what its description says."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.engine import Engine
from engine.server.keys import ServerKeys
from engine.spec.config import EngineConfig
from engine.spec.limits import RequestLimits
from engine.text.tokenizer import Tokenizer
from tests.described import check_contract
from tests.engine.server.conftest import serving

pytestmark = pytest.mark.slow
CONFIG = Path(__file__).with_name("schemathesis.toml")
KEY = "the-key-of-the-test"


def test_no_operation_answers_what_its_description_does_not_say(
    tiny_dir: Path, tmp_path: Path
) -> None:
    """Over a real rank, with a context that the longest output fills soon."""
    tokenizer = Tokenizer.from_dir(tiny_dir)
    config = EngineConfig(model_dir=tiny_dir, num_kv_blocks=512, max_model_len=64)
    limits = RequestLimits(rate_per_s=0.0)
    with (
        Engine(config, tokenizer=tokenizer) as engine,
        serving(engine, tiny_dir, keys=ServerKeys(api=KEY), limits=limits) as server,
    ):
        known = {"tags": ["*"]}
        check_contract(server.url, key=KEY, config=CONFIG, folder=tmp_path, known=known)
        assert engine.is_healthy
