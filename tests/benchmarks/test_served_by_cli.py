"""The command of a published run is that run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.served_by_cli import ask, command_of, drawn
from tuner.backends import load_profile
from tuner.calibration.served_rows import RowSimulator, ServedRow

ROW = ServedRow(
    backend="vllm",
    version="0.12.0",
    device="h100",
    model="llama-3.1-8b",
    precision="bf16",
    input_tokens=1024,
    output_tokens=32,
    concurrency=4,
    tp=2,
    ttft_s=0.1,
    tpot_s=0.01,
)


def test_every_group_is_drawn_alike_and_the_same_seed_draws_the_same() -> None:
    rows = [replace(ROW, concurrency=n) for n in range(1, 30)]
    rows += [replace(ROW, device="h200", concurrency=n) for n in range(1, 4)]
    found = drawn(rows, 5, 0)
    assert [row.device for row in found].count("h100") == 5
    assert [row.device for row in found].count("h200") == 3
    assert found == drawn(rows, 5, 0)


def test_settings_of_a_tools_script_are_words_of_the_command() -> None:
    words = command_of(replace(ROW, version="", output_tokens=1024))
    assert "vllm@0.10.2,async_scheduling=on,kernels.rounds_apart=off" in words
    spec = words[words.index("--workload") + 1]
    assert "input=uniform:0.8..1*1024" in spec
    assert spec.endswith("requests=40")


@pytest.mark.slow
def test_a_command_says_what_the_calibration_simulates() -> None:
    told = ask(ROW)
    assert told.values is not None, told.error
    wanted = RowSimulator({"vllm": load_profile("vllm")}).simulate(ROW)
    assert told.values[0, 0] == pytest.approx(1e3 * wanted.ttft_s)
    assert told.values[1, 0] == pytest.approx(1e3 * wanted.tpot_s)
