"""What a caller hears when a model has no finite logit for its prompt."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.engine import Engine
from engine.spec.config import EngineConfig
from tests.engine.checkpoints import OVERFLOWING_TOKEN, write_overflowing
from tests.engine.server.conftest import refusal, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_overflowing(tmp_path_factory.mktemp("overflowing") / "model")


def test_it_is_a_500_that_is_not_to_be_repeated_and_a_metric_counts_it(folder: Path) -> None:
    config = EngineConfig(model_dir=folder, num_kv_blocks=64)
    with Engine(config) as engine, serving(engine, folder) as server:
        reply = server.complete(prompt=[5, OVERFLOWING_TOKEN], max_tokens=4)
        assert refusal(reply, 500)["code"] == "non_finite_logits"
        assert reply.headers["x-should-retry"] == "false"
        stream = server.complete(prompt=[5, OVERFLOWING_TOKEN], max_tokens=4, stream=True)
        assert '"non_finite_logits"' in stream.text
        assert server.complete(prompt=[5, 6], max_tokens=1).status_code == 200
        lines = server.http.get("/metrics").text.splitlines()
    (counted,) = [x for x in lines if x.startswith("gearshift_non_finite_logits_total{")]
    assert counted.endswith(" 2.0")
