"""What the policy editor offers: knobs that the engine has, and no others."""

from __future__ import annotations

from typing import Any

import pytest

from api.dashboard.policy_editor import FIELDS, NO_RESTART, Offer
from api.documents.server_knobs import check_settings
from api.schemas.examples.engines import ENGINE
from api.schemas.serving import EngineView
from engine.spec.errors import EngineError
from engine.spec.settings import Settings

# Of each field another value than usual, as the form would send it.
VALUES: dict[str, Any] = {
    "shift.threshold_tokens": 64,
    "caps.max_num_seqs": 8,
    "caps.max_num_batched_tokens": 512,
    "caps.max_step_ms": 20,
    "mode": "base",
    "scheduler.order": "priority",
    "plan.dp": 2,
    "plan.pp": 2,
    "plan.sp": 2,
    "plan.tp": 2,
    "caps.max_queue": 4,
    "admission.rate_rps": 5,
}


def engine(system: str | None) -> EngineView:
    return EngineView.model_validate({**ENGINE, "system": system})


def names(offer: Offer) -> list[str]:
    return [".".join(field.path) for field in offer.fields]


def test_an_engine_of_ours_is_offered_everything() -> None:
    assert Offer.of(engine(None)) == Offer(fields=FIELDS)


def test_a_server_that_nobody_restarts_is_offered_its_sla_and_told_why() -> None:
    offer = Offer.of(engine("vllm"))
    assert names(offer) == ["sla"]
    assert offer.note == NO_RESTART


@pytest.mark.parametrize("system", ["vllm", "sglang"])
@pytest.mark.parametrize("name", VALUES)
def test_a_restarted_server_is_offered_just_what_it_does_not_refuse(system: str, name: str) -> None:
    offer = Offer.of(engine(system), is_restarted=True)
    assert offer.note == ""
    assert (name in names(offer)) is _takes(system, name)


def test_each_group_that_is_offered_has_its_heading_once() -> None:
    offer = Offer.of(engine("vllm"), is_restarted=True)
    headings = {field.begins: ".".join(field.path) for field in offer.fields if field.begins}
    assert headings == {
        "Steps": "caps.max_num_seqs",
        "Plan: how the devices share the work": "plan.dp",
        "Promise": "sla",
    }


def _takes(system: str, name: str) -> bool:
    """Whether the service lets a policy of such a server have it."""
    document: dict[str, Any] = Settings().to_json()
    *place, last = name.split(".")
    part = document
    for word in place:
        part[word] = part = dict(part.get(word) or {})
    part[last] = VALUES[name]
    try:
        check_settings(system, Settings.from_json(document))
    except EngineError:
        return False
    return True
