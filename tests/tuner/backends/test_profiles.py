"""Profiles of serving systems: what their files must hold, and what a wrong one says."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from tuner.backends import Backend, list_backends, load_backend, load_profile
from tuner.backends.backend import UNMEASURED_INTERVAL, HostShares, HostTimes, KernelTimes
from tuner.calibration.served import arctic_of
from tuner.hardware import Launch
from tuner.spec.errors import TunerError


def test_five_systems_have_a_profile_that_names_itself_and_its_source() -> None:
    assert list_backends() == ["arctic", "gearshift", "sglang", "trtllm", "vllm"]
    for name in list_backends():
        profile = load_backend(name)
        assert profile.name == name
        assert profile.version >= 1
        assert len(profile.source) > 20


def test_an_unknown_system_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TunerError, match="'lmdeploy' is not known; known are arctic, gearshift"):
        load_backend("lmdeploy")


@pytest.mark.parametrize("name", ["vllm", "trtllm"])
def test_a_fitted_profile_says_on_what_and_how_it_fares_on_groups_it_never_saw(name: str) -> None:
    fitted = load_backend(name).fitted
    assert fitted is not None
    assert len(fitted.sha256) == 64
    assert fitted.command.startswith("python -m tuner.calibration.served")
    assert len(fitted.held_out) >= 2
    for group in fitted.held_out:
        assert len(group.values) == len(fitted.parameters)
        assert 0 < group.tpot < 0.5
        assert 0 < group.ttft < 1.0


def test_arctic_is_vllm_with_a_second_copy_of_the_weights_and_eager_collectives() -> None:
    arctic, vllm = load_backend("arctic"), load_backend("vllm")
    assert arctic.host == load_profile("vllm").host
    assert arctic.front_end == vllm.front_end
    assert (arctic.has_second_weights, vllm.has_second_weights) == (True, False)
    assert (arctic.launch, arctic.shift_launch) == (Launch.EAGER, Launch.EAGER)


def test_arctics_file_is_what_is_made_of_vllms() -> None:
    assert arctic_of(load_profile("vllm")) == load_backend("arctic")


def test_a_profile_knows_how_far_off_it_is_and_whether_that_was_measured() -> None:
    for name in ("vllm", "trtllm"):
        profile = load_backend(name)
        assert profile.is_measured
        assert profile.fitted is not None
        # What nine runs of ten are within is more than what half of the best group's are.
        assert min(group.tpot for group in profile.fitted.held_out) < profile.interval < 0.5
    for name in ("gearshift", "arctic", "sglang"):
        assert not load_backend(name).is_measured
        assert load_backend(name).interval == UNMEASURED_INTERVAL


def test_a_profile_written_out_reads_back_the_same() -> None:
    for name in list_backends():
        profile = load_backend(name)
        assert Backend.from_json(profile.to_json(), where="a file") == profile


def _raw(**changes: Any) -> dict[str, Any]:
    raw = copy.deepcopy(load_backend("gearshift").to_json())
    raw.update(changes)
    return raw


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "backend/v1"}, "schema 'backend/v1' is not"),
        ({"launch": "lazy"}, "launch: .*'lazy'"),
        ({"title": 4}, "title: Expected `str`, got `int`"),
        ({"versoin": 4}, "unknown key 'versoin' .did you mean 'version'"),
        ({"front_end": {"requests_s": 1.0}}, "requests_s"),
        ({"interval": -0.1}, "interval=-0.1: must be at least 0"),
        ({"kernels": {"gemm": 0.0}}, "gemm=0.0: must be above 0"),
        ({"host": {"step_s": -1.0, "seq_s": 0.0, "is_overlapped": True}}, "step_s=-1.0"),
        ({"default_caps": {"max_num_seqs": 0}}, "max_num_seqs=0"),
    ],
)
def test_a_wrong_profile_is_refused_by_file_and_value(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TunerError, match=message) as caught:
        Backend.from_json(_raw(**changes), where="mine.json")
    assert "mine.json" in str(caught.value)


def test_shares_of_the_host_add_up() -> None:
    with pytest.raises(TunerError, match="add up to 1"):
        HostShares(schedule=0.5, input=0.2, sample=0.2, output=0.2)


def test_host_work_counts_steps_sequences_prompts_and_their_tokens() -> None:
    host = HostTimes(step_s=1.0, seq_s=0.1, request_s=0.5, prompt_token_s=0.01, is_overlapped=False)
    assert host.work_s(num_seqs=10, num_prompts=2, prompt_tokens=100) == pytest.approx(4.0)


def test_kernel_times_start_as_the_devices_own() -> None:
    assert KernelTimes() == replace(KernelTimes(), gemm=1.0)
