"""The engine's last hours again, under two settings, in a process of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from api.aside.process import AsideError, AsideLimits, run_aside
from api.aside.replay import replayed
from api.documents.policy import model_to_json
from engine.spec.inventory import Inventory, RankKind
from engine.spec.model import DType
from engine.spec.plan import ParallelPlan
from engine.spec.quantisation import Quantisation, WeightFormat
from engine.spec.settings import Caps, Settings
from tests.tuner.profiles import made_up_profile
from tests.tuner.worlds import SMALL
from tuner.spec.errors import TunerError
from tuner.step_model.fit import fit_step_model
from tuner.work.models import load_model

Json = dict[str, Any]
LIMITS = AsideLimits(seconds=60.0, memory_mib=2048)
CONTROL = Settings(plan=ParallelPlan(), caps=Caps(max_num_seqs=256, max_num_batched_tokens=2048))

STARVED = replace(CONTROL, caps=Caps(max_num_seqs=2, max_num_batched_tokens=2048))


def question(candidate: Settings, **changes: Any) -> Json:
    """Ten requests a second for a minute and a half, of an engine on one H100."""
    inventory = Inventory(kind=RankKind.PACED, max_ranks=1, dtype=DType.BFLOAT16)
    return {
        "arrivals": [(n / 10, 512, 64) for n in range(900)],
        "control": CONTROL.to_json(),
        "candidate": candidate.to_json(),
        "sla": "p95_ttft_ms<=500,p95_tpot_ms<=30",
        "alpha": 0.05,
        "model": model_to_json(load_model("llama-3.1-8b")),
        "inventory": inventory.to_json(),
        "hardware": "h100",
        "step_scale": 1.0,
        "model_name": None,
        "dtype": None,
        "backend": None,
        "cost_model": None,
        **changes,
    }


def test_settings_that_starve_requests_are_worse_for_sure() -> None:
    verdict = replayed(question(STARVED))
    assert (verdict["requests"], verdict["fidelity"]) == (900, "simulated")
    assert verdict["control_attainment"] > 0.99
    assert verdict["candidate_attainment"] < 0.5
    assert verdict["effect"]["high"] < -0.4


@pytest.mark.slow
def test_in_its_own_process_it_says_the_same_and_errors_in_words() -> None:
    verdict = run_aside("replay", question(STARVED), LIMITS)
    assert verdict == replayed(question(STARVED))
    with pytest.raises(AsideError, match="abacus"):
        run_aside("replay", question(CONTROL, hardware="abacus"), LIMITS)


def test_an_engine_that_was_started_anew_with_other_weights_is_not_replayed() -> None:
    """A rollout's cost model was checked when it was asked for."""
    fitted = replace(fit_step_model(made_up_profile(), SMALL), weights="int8")
    inventory = Inventory(kind=RankKind.CPU, max_ranks=2).to_json()
    asked = {
        "hardware": None,
        "inventory": inventory,
        "model": model_to_json(SMALL),
        "cost_model": json.loads(json.dumps(fitted.to_json())),
    }
    with pytest.raises(TunerError, match="int8 weights, and this engine's are plain"):
        replayed(question(CONTROL, **asked))
    held = replace(SMALL, quantisation=Quantisation(format=WeightFormat.INT8, at_load=True))
    verdict = replayed(question(CONTROL, **asked | {"model": model_to_json(held)}))
    assert verdict["requests"] == 900


def test_an_engine_that_is_paced_in_fp8_is_simulated_in_fp8() -> None:
    of_70b = {"model": model_to_json(load_model("llama-3.1-70b")), "hardware": "h200"}
    with pytest.raises(TunerError, match="GB of weights per rank"):
        replayed(question(CONTROL, **of_70b))
    verdict = replayed(question(CONTROL, **of_70b, dtype="fp8", backend="vllm"))
    assert verdict["requests"] == 900


def test_of_a_model_whose_name_says_fp8_steps_are_those_of_fp8() -> None:
    name = "meta-llama/Llama-3.1-70B-Instruct-FP8"
    of_70b = {"model": model_to_json(load_model(name)), "hardware": "h200", "model_name": name}
    assert replayed(question(CONTROL, **of_70b, backend="vllm"))["requests"] == 900


def test_steps_that_take_longer_than_their_model_says_do_so_in_a_replay() -> None:
    bounds = {"sla": "p95_ttft_ms<=500,p95_tpot_ms<=12"}
    told, seen = (replayed(question(CONTROL, **bounds, step_scale=s)) for s in (1.0, 2.0))
    assert told["control_attainment"] > 0.9
    assert seen["control_attainment"] < 0.5
