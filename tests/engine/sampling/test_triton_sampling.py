"""The sampling kernels answer what the rule in numpy answers: interpreted, and on a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.engine.cuda_checks import syncs_refused

ROOT = Path(__file__).parents[3]
NEEDS_TRITON = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def check_interpreted(first: int, end: int) -> None:
    code = (
        "import tests.engine.sampling.triton_cases as cases; "
        f"cases.compare_interpreted({first}, {end})"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@NEEDS_TRITON
def test_interpreted_kernels_sample_what_the_rule_in_numpy_samples() -> None:
    check_interpreted(0, 2)


@NEEDS_TRITON
@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 1300, 50))
def test_interpreted_kernels_sample_what_the_rule_samples_in_many_cases(first: int) -> None:
    check_interpreted(first, first + 50)


@pytest.mark.gpu
def test_kernels_sample_on_the_device_what_the_rule_in_numpy_samples() -> None:
    from tests.engine.sampling import triton_cases

    device = torch.device("cuda")
    triton_cases.check_noise(device)
    triton_cases.check_padding(device)
    triton_cases.check_close_calls(device, num_rows=500)
    triton_cases.check_all(device, range(400))
    for seed in range(20):
        triton_cases.check_sampler(device, seed=seed, num_rows=4, num_steps=3)


@pytest.mark.gpu
def test_a_large_vocabulary_is_sampled_on_the_device_as_on_the_host_whatever_the_chunks() -> None:
    from tests.engine.sampling import triton_cases

    device = torch.device("cuda")
    case = triton_cases.large_case(num_rows=24, vocab_size=128_256)
    for chunk in (1024, 4096):
        triton_cases.check(triton_cases.with_chunk(case, chunk), device)


@pytest.mark.gpu
def test_no_kind_of_row_makes_the_host_wait_for_the_device() -> None:
    from tests.engine.sampling import triton_cases

    device = torch.device("cuda")
    case = triton_cases.large_case(num_rows=24, vocab_size=32_000)
    sampler = triton_cases.sampler_of(case, device)
    shard = case.logits.to(device)
    sampler.sample(shard, slots=case.slots, positions=case.positions)  # compiles the kernels
    with syncs_refused():
        found = [
            sampler.sample(shard, slots=case.slots, positions=case.positions + step)
            for step in range(3)
        ]
    assert all(0 <= int(token) < 32_000 for answer in found for token in answer.ids)


@pytest.mark.gpu
def test_a_graph_of_the_launches_samples_other_rows_of_the_same_kinds() -> None:
    from engine.sampling.triton_rows import pack_rows
    from engine.sampling.triton_sampler import draw_on_device, launch
    from tests.engine.sampling import triton_cases

    device = torch.device("cuda")
    first, second = (
        triton_cases.large_case(num_rows=8, vocab_size=32_000, seed=seed, has_edits=False)
        for seed in (1, 2)
    )
    logits = first.logits.to(device)
    rows = pack_rows(first.values, vocab_size=32_000)
    words = torch.from_numpy(rows.words).to(device)
    launch(logits, rows, words)  # compiles the kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        drawn = launch(logits, rows, words)
    for case in (first, second):
        packed = pack_rows(case.values, vocab_size=32_000)
        assert packed.kinds == rows.kinds
        logits.copy_(case.logits)
        words.copy_(torch.from_numpy(packed.words))
        graph.replay()
        assert torch.equal(drawn.ids, draw_on_device(case.logits.to(device), case.values).ids)


@NEEDS_TRITON
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_gpus_that_are_not_here_and_all_of_them_at_the_start(
    capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.engine.compiled import compiling
    from tests.engine.sampling import triton_cases

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    cpu, vocab_size = torch.device("cpu"), 128_256
    cases = [
        triton_cases.large_case(num_rows=num_rows, vocab_size=vocab_size, has_edits=has_edits)
        for num_rows in (6, 7, 24, 33)
        for has_edits in (False, True)
    ]
    with compiling(capability=capability) as at_start:
        triton_cases.sampler_of(cases[0], cpu).compile_kernels(torch.bfloat16)
    with compiling(capability=capability) as later:
        for case in cases:
            triton_cases.drawn(case, cpu)
            triton_cases.drawn(triton_cases.unlimited(case), cpu)
    kinds = {"_best_kernel", "_floor_kernel", "_digit_kernel", "_settle_kernel"}
    assert set(at_start) == set(later) == kinds | {"_draw_kernel", "_choose_kernel"}
    for name, kernels in later.items():
        ready = {kernel.hash for kernel in at_start[name]}
        assert {kernel.hash for kernel in kernels} <= ready, name
    # Every token passes there: arithmetic that many GPUs do at a 64th of the rate stays out.
    assert not any(".f64" in kernel.asm["ptx"] for kernel in at_start["_draw_kernel"])
