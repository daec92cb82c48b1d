"""Files of other load tools: recognised by content, and every number under the right id."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.sla import Sla
from tuner.imports.read import read_runs
from tuner.imports.run import ImportFileError, Tool

VLLM = {
    "model_id": "m", "request_rate": 2.0, "duration": 4.0, "completed": 2, "failed": 1,
    "total_input_tokens": 30, "total_output_tokens": 7, "request_throughput": 0.5,
    "output_throughput": 1.75, "total_token_throughput": 9.25,
    "mean_ttft_ms": 150.0, "median_ttft_ms": 149.0, "p99_ttft_ms": 199.0,
    "mean_tpot_ms": 75.0, "median_tpot_ms": 75.0, "p99_tpot_ms": 99.0,
}  # fmt: skip
DETAILED = {
    **VLLM, "input_lens": [10, 20, 5], "output_lens": [3, 4, 0], "ttfts": [0.1, 0.2, 0.0],
    "itls": [[0.05, 0.05], [0.1, 0.1, 0.1], []], "start_times": [100.0, 101.0, 102.0],
    "errors": ["", "", "refused"],
}  # fmt: skip


def guidellm_request(start_s: float) -> dict[str, Any]:
    """Four tokens, the first after 0.4 s, the others 0.1 s apart."""
    at = {
        "request_start": start_s,
        "first_token_iteration": start_s + 0.4,
        "last_token_iteration": start_s + 0.7,
    }
    return {
        "info": {"timings": at}, "prompt_tokens": 12, "output_tokens": 4,
        "time_per_output_token_ms": 175.0, "inter_token_latency_ms": 100.0,
    }  # fmt: skip


def guidellm_metric(mean: float) -> dict[str, Any]:
    return {"successful": {"mean": mean, "median": mean, "percentiles": {"p95": mean * 2}}}


GUIDELLM = {
    "benchmarks": [
        {
            "config": {"strategy": {"type_": "constant", "rate": 2.5}},
            "requests": {"successful": [guidellm_request(5.0)], "errored": [], "incomplete": []},
            "metrics": {"time_per_output_token_ms": guidellm_metric(175.0)},
        },
        {
            "metrics": {
                "request_totals": {"successful": 3, "errored": 1, "incomplete": 2},
                "time_to_first_token_ms": guidellm_metric(400.0),
                "request_latency": guidellm_metric(0.7),
                "inter_token_latency_ms": guidellm_metric(100.0),
                "time_per_output_token_ms": guidellm_metric(175.0),
            }
        },
    ]
}


def aiperf_record(start_s: float, phase: str = "profiling", **other: Any) -> dict[str, Any]:
    values = {
        "input_sequence_length": 20, "output_sequence_length": 3, "time_to_first_token": 100.0,
        "request_latency": 300.0, "inter_chunk_latency": [50.0, 150.0],
    }  # fmt: skip
    metadata = {"request_start_ns": int(start_s * 1e9), "benchmark_phase": phase}
    metrics = {name: {"value": value, "unit": "ms"} for name, value in values.items()}
    return {"metadata": metadata, "metrics": metrics, "error": None, **other}


AIPERF_SUMMARY = {
    "request_throughput": {"unit": "requests/sec", "avg": 2.0},
    "request_latency": {"unit": "ms", "avg": 300.0, "p50": 299.0, "p95": 310.0},
    "time_to_first_token": {"unit": "ms", "avg": 100.0, "p50": 99.0},
    "inter_token_latency": {"unit": "ms", "avg": 100.0},
    "output_token_throughput": {"unit": "tokens/sec", "avg": 60.0},
    "request_count": {"unit": "requests", "avg": 5.0},
}


def read(path: Path, *documents: Any) -> list[dict[str, Any]]:
    path.write_text("\n".join(map(json.dumps, documents)))
    return [run.to_json() for run in read_runs(path)]


def test_a_summary_of_vllm_bench_keeps_its_numbers_and_says_what_they_count_from(
    tmp_path: Path,
) -> None:
    (run,) = read(tmp_path / "a.json", VLLM)
    assert run["tool"] == Tool.VLLM_BENCH
    assert run["metrics"]["ttft_ms"]["p50"] == 149.0
    assert run["metric_ids"]["ttft_ms"] == "ttft.sent.v1"
    assert run["metric_ids"]["tpot_ms"] == "tpot.v1"
    assert run["requests"]["completed"] == 2
    assert run["requests"]["errored"] == 1
    assert not run["is_per_request"]


def test_a_detailed_result_of_vllm_bench_is_computed_anew(tmp_path: Path) -> None:
    (run,) = read(tmp_path / "a.json", DETAILED)
    assert run["is_per_request"]
    metrics = run["metrics"]
    assert metrics["ttft_ms"]["mean"] == pytest.approx(150.0)
    assert metrics["tpot_ms"]["mean"] == pytest.approx(75.0)
    assert metrics["itl_ms"]["mean"] == pytest.approx(80.0)
    assert metrics["e2e_ms"]["mean"] == pytest.approx(350.0)
    assert metrics["throughput_tokens_per_s"] == pytest.approx(7 / 1.5)
    assert run["requests"]["errored"] == 1
    assert len(read(tmp_path / "appended.json", DETAILED, VLLM)) == 2


def test_gaps_of_chunks_are_not_taken_for_gaps_of_tokens(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    (run,) = read(path, {**DETAILED, "itls": [[0.1], [0.1, 0.1, 0.1], []]})
    assert run["metrics"]["itl_ms"] is None
    assert run["metrics"]["tpot_ms"]["mean"] == pytest.approx(75.0)
    assert "itl_ms" in run["left_out"][0]
    with pytest.raises(ImportFileError, match="several tokens in a chunk"):
        read_runs(path)[0].to_json(Sla.parse("p95_itl_ms<=50"))


def test_guidellms_time_per_output_token_is_never_ours(tmp_path: Path) -> None:
    listed, summed = read(tmp_path / "benchmarks.json", GUIDELLM)
    assert listed["name"] == "benchmark 0: constant, 2.5 requests/s"
    assert summed["name"] == "benchmark 1: strategy not told"
    assert listed["metrics"]["tpot_ms"]["mean"] == pytest.approx(100.0)
    assert listed["metrics"]["ttft_ms"]["mean"] == pytest.approx(400.0)
    assert listed["metrics"]["itl_ms"] is None
    assert "tpot_ms" not in summed["metrics"]
    assert summed["metrics"]["tpot_with_first_ms"]["mean"] == 175.0
    assert summed["metric_ids"]["tpot_with_first_ms"] == "tpot.with_first.v1"
    assert summed["metric_ids"]["tpot_by_tokens_ms"] == "tpot.by_tokens.v1"
    assert summed["metrics"]["e2e_ms"]["p95"] == pytest.approx(1400.0)
    assert summed["requests"]["cut"] == 2


def test_aiperfs_records_leave_its_warm_up_out_and_count_errors(tmp_path: Path) -> None:
    records = [
        aiperf_record(1.0, phase="warmup"),
        aiperf_record(2.0),
        aiperf_record(2.5, metrics={}, error={"code": 500}),
    ]
    (run,) = read(tmp_path / "profile_export.jsonl", *records)
    assert run["tool"] == Tool.AIPERF
    assert run["requests"] == {"completed": 1, "errored": 1, "timed_out": 0, "cut": 0}
    assert run["metrics"]["ttft_ms"]["mean"] == pytest.approx(100.0)
    assert run["metrics"]["tpot_ms"]["mean"] == pytest.approx(100.0)
    assert run["metrics"]["itl_ms"]["p99"] == pytest.approx(149.0)


def test_aiperfs_summary_is_read_by_its_names(tmp_path: Path) -> None:
    (run,) = read(tmp_path / "profile_export_aiperf.json", AIPERF_SUMMARY)
    assert run["metrics"]["tpot_ms"]["mean"] == 100.0
    assert run["metrics"]["e2e_ms"]["p95"] == 310.0
    assert run["metrics"]["throughput_tokens_per_s"] == 60.0
    assert run["requests"]["completed"] == 5


def test_an_sla_is_judged_on_requests_and_refused_on_a_summary(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    sla = Sla.parse("p95_ttft_ms<=500")
    read(path, DETAILED)
    assert read_runs(path)[0].to_json(sla)["metrics"]["attainment"] == pytest.approx(2 / 3)
    read(path, VLLM)
    with pytest.raises(ImportFileError, match=r"a summary only; .* with --save-detailed"):
        read_runs(path)[0].to_json(sla)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_that_a_shell_of_windows_has_redirected_is_read(
    tmp_path: Path, encoding: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(VLLM), encoding=encoding)
    assert read_runs(path)[0].tool is Tool.VLLM_BENCH


def test_a_request_that_never_was_sent_does_not_stretch_the_run(tmp_path: Path) -> None:
    """Its time is 0, and that of the others the machine's since it was switched on."""
    path = tmp_path / "a.json"
    (run,) = read(path, {**DETAILED, "start_times": [100.0, 101.0, 0.0]})
    assert run["metrics"]["throughput_tokens_per_s"] == pytest.approx(7 / 1.5)
    assert run["requests"]["errored"] == 1
    (run,) = read(path, {**DETAILED, "start_times": [0.0, 0.0, 0.0]})
    assert not run["is_per_request"]
    assert run["metrics"]["throughput_tokens_per_s"] == 1.75


def test_aiperfs_records_in_another_unit_are_refused(tmp_path: Path) -> None:
    record = aiperf_record(1.0)
    record["metrics"]["time_to_first_token"] = {"value": 0.1, "unit": "sec"}
    with pytest.raises(ImportFileError, match="time_to_first_token is in sec, ms is known"):
        read(tmp_path / "profile_export.jsonl", record)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "no result file of a tool known here"),
        ("nonsense", "neither JSON nor JSON lines"),
        ("", "no result file|neither"),
        (json.dumps({**VLLM, "completed": "two"}), "completed"),
        (json.dumps({**DETAILED, "ttfts": [0.1]}), "different lengths"),
        (json.dumps({**DETAILED, "output_lens": [10**15, 4, 0]}), "tokens; at most"),
        (json.dumps({"benchmarks": [{}]}), "metrics"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_field(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(ImportFileError, match=message) as caught:
        read_runs(path)
    assert str(path) in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
KNOWN = (DETAILED, GUIDELLM, AIPERF_SUMMARY, aiperf_record(1.0))


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(KNOWN), st.data())
def test_whatever_stands_in_a_field_the_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any], data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    name = data.draw(st.sampled_from(sorted(document)))
    path.write_text(json.dumps({**document, name: data.draw(JSON)}))
    with suppress(ImportFileError):
        for run in read_runs(path):
            json.dumps(run.to_json(), allow_nan=False)
