"""Keys of an engine's server: one for the model, another for the knobs, none on its own machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.engine import Engine
from engine.server.keys import ServerKeys
from tests.engine.server.conftest import MODEL, Server, serving, simulated_engine

POLICY = "/v1/engine/policy"
PUBLIC = ServerKeys(is_local=False)


@pytest.fixture(scope="module")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with simulated_engine(tiny_dir, step_s=0.001) as running:
        yield running


def _statuses(server: Server, key: str | None) -> tuple[int, int, int]:
    """Of a completion, of reading the policy and of changing it."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    body = {"model": MODEL, "prompt": "x", "max_tokens": 1}
    answers = (
        server.http.post("/v1/completions", json=body, headers=headers),
        server.http.get(POLICY, headers=headers),
        server.http.patch(POLICY, json={}, headers={**headers, "If-Match": "*"}),
    )
    return answers[0].status_code, answers[1].status_code, answers[2].status_code


@pytest.mark.parametrize(
    ("keys", "asked"),
    [
        (ServerKeys(), {None: (200, 200, 200)}),
        (PUBLIC, {None: (200, 403, 403), "any": (200, 403, 403)}),
        (
            ServerKeys(api="model", is_local=False),
            {None: (401, 401, 401), "model": (200, 200, 200)},
        ),
        (
            ServerKeys(knobs="knobs", is_local=False),
            {None: (200, 401, 401), "knobs": (200, 200, 200)},
        ),
        (
            ServerKeys(api="model", knobs="knobs"),
            {None: (401, 401, 401), "model": (200, 401, 401), "knobs": (401, 200, 200)},
        ),
    ],
)
def test_each_part_asks_for_its_key(
    engine: Engine, tiny_dir: Path, keys: ServerKeys, asked: dict[str | None, tuple[int, int, int]]
) -> None:
    with serving(engine, tiny_dir, keys=keys) as server:
        assert {key: _statuses(server, key) for key in asked} == asked
        paths = server.http.get("/openapi.json").json()["paths"]
        answers = paths[POLICY]["patch"]["responses"]
        assert ("403" in answers) == (not keys.has_knobs)
        assert ("401" in answers) == (keys.knob_key is not None)


def test_closed_knobs_say_how_to_open_them(engine: Engine, tiny_dir: Path) -> None:
    with serving(engine, tiny_dir, keys=PUBLIC) as server:
        for path in ("/v1/engine/capabilities", POLICY, "/v1/engine/none"):
            problem = server.http.get(path).json()
            assert (problem["status"], problem["code"]) == (403, "knobs_closed")
            assert "GEARSHIFT_KNOB_KEY" in problem["detail"]
