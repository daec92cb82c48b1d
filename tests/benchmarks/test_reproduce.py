"""The packs that reproduce papers run from end to end on small sizes, and say what they found."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.reproduce import __main__ as reproduce
from benchmarks.reproduce import albireo, dense, shift
from benchmarks.reproduce.crossover import find_crossover
from benchmarks.reproduce.dense_ratios import LIMIT, PAPER, SWITCHED, RatioCase, predict_ratios
from benchmarks.reproduce.nodes import get_node
from benchmarks.reproduce.static_batch import StaticLoad, static_latency
from benchmarks.reproduce.tables import Cell, cell_table, wrong_orders
from engine.spec.plan import ParallelPlan

SMALL_SHIFT = shift.Size(
    at_once=40, burst_s=20.0, sweep_s=4.0, rates=(2,), lengths=(2048,), thresholds=(0, 512)
)
SMALL_ALBIREO = albireo.Size(
    requests=40, lengths=((256, 16),), loads=(4, 16), models=("qwen2.5-7b",)
)
SMALL_DENSE = dense.Size(
    requests=4,
    big_requests=2,
    short_requests=8,
    batches=(1,),
    ratio_cases=(RatioCase(hardware="8xh200", precision="bf16"),),
    link_speeds_gb=(450, 8),
    big_nodes=(("8xh200", "fp8"), ("8xh100", "bf16")),
)


def test_every_cell_of_the_table_is_predicted(tmp_path: Path) -> None:
    text = "\n".join(shift.sections(tmp_path, SMALL_SHIFT))
    for row, columns in shift.PUBLISHED.items():
        for column in columns:
            assert f"| {row}, {column} |" in text
    assert "is not under" in text, "a missing trace is said, not skipped silently"


def test_one_step_and_the_optimal_degrees_are_told() -> None:
    text = "\n".join(albireo.sections(SMALL_ALBIREO))
    assert "| published | 4.0 | 4.0 | 21.0 | 6.0 | 0.5 | 35.5 | 41% | +0 |" in text
    assert "t_e rises when overheads are removed" in text
    assert "| qwen2.5-7b | 15 GB | 1 |" in text


def test_hybrids_that_do_not_fit_say_why() -> None:
    text = "\n".join(dense.sections(SMALL_DENSE))
    assert "Feasible: tp=8; pp=2,tp=4; pp=4,tp=2; pp=8." in text
    assert "Feasible: none." in text
    assert "GB of weights per rank" in text


def test_the_dense_papers_node_scales_as_it_says_and_a_switch_would_not() -> None:
    assert all(abs(cell.error) <= LIMIT for cell in predict_ratios(PAPER))
    prefill = [cell for cell in predict_ratios(SWITCHED) if cell.what.startswith("prefill")]
    assert all(cell.error < -LIMIT for cell in prefill)


def test_removing_overheads_never_costs_throughput() -> None:
    for overheads in (albireo.fitted_overheads(albireo.MODEL), albireo.published_overheads()):
        exposed, removed = (
            albireo.measure_degrees(
                albireo.MODEL, overheads, SMALL_ALBIREO, (256, 16), is_removed=is_removed
            )
            for is_removed in (False, True)
        )
        assert all(removed[t] > exposed[t] > 0 for t in exposed)


def test_base_stays_faster_above_the_crossover() -> None:
    node = get_node("8xh200", "llama-3.3-70b", "fp8", "gearshift")
    tokens = find_crossover(node, 8, is_decode=True)
    assert tokens is not None
    assert 64 < tokens < 4096


def test_a_deeper_pipeline_shortens_no_prompt() -> None:
    node = get_node("8xh200", "llama-3.1-70b", "bf16", "vllm")
    load = StaticLoad(batch=1, input_tokens=2048, output_tokens=16)
    shallow, deep = (static_latency(node, ParallelPlan(pp=pp), load) for pp in (2, 8))
    assert deep.prefill_s >= shallow.prefill_s


def test_small_differences_need_not_be_in_order() -> None:
    published = {"a": 100.0, "b": 104.0, "c": 150.0}
    assert wrong_orders(published, {"a": 2.0, "b": 1.0, "c": 3.0}) == []
    assert wrong_orders(published, {"a": 2.0, "b": 4.0, "c": 3.0}) == [("b", "c")]


def test_a_cell_outside_its_limit_is_marked() -> None:
    lines = cell_table([Cell(what="x", published=10.0, predicted=12.0)], 0.15)
    assert "| x | 12 | 10 | +20.0% | **no** |" in lines
    assert "0 of 1 cells within 15%." in lines


def test_a_report_has_its_date_and_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(albireo, "sections", lambda size: iter([f"{size.requests} requests"]))
    assert reproduce.main(["albireo", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    assert "* Command: `python -m benchmarks.reproduce albireo`" in path.read_text()
    assert f"{albireo.Size().requests} requests" in path.read_text()
    assert path.name in capsys.readouterr().out


def test_an_unknown_pack_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        reproduce.main(["vidur"])
    assert "known: shift, albireo, dense" in capsys.readouterr().err
