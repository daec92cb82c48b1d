"""``gearshift compare``: every kind of plan on the same draws."""

from __future__ import annotations

import json
from pathlib import Path

from tests.api.cli.conftest import COMPARE, Run


def test_all_cases_see_the_same_draws_and_the_answer_names_what_shift_gains(
    compared: tuple[Path, str],
) -> None:
    document, told = json.loads(compared[0].read_text()), compared[1]
    cases = {case["name"]: case for case in document["cases"]}
    assert set(cases) == {"TP alone", "SP alone", "PP alone", "DP alone", "Shift at 512",
                          "Shift tuned", "ladder by table", "oracle"}  # fmt: skip
    assert [m["key"] for m in document["metrics"]] == [
        "p99_ttft_ms", "p95_tpot_ms", "p95_e2e_ms", "throughput_tokens_per_s"]  # fmt: skip
    for case in cases.values():
        assert all(len(metric["draws"]) == 2 for metric in case["metrics"].values())
        assert case["draws_met"] == 2
    # Every step in its fastest mode is at least as quick as the same steps in one of the two.
    tpots = {name: case["metrics"]["p95_tpot_ms"]["mean"] for name, case in cases.items()}
    assert tpots["oracle"] <= 1.02 * min(tpots["Shift tuned"], tpots["ladder by table"])
    assert document["best_static"].split(" (")[0] in ("TP alone", "SP alone", "DP alone")
    assert any(line.startswith("Shift tuned") and "TTFT" in line for line in document["answer"])
    assert all(not best["case"].startswith("oracle") for best in document["best"].values())
    assert "beyond tp=" in told or "up to tp=" in told
    assert max(map(len, told.splitlines())) <= 80


def test_any_number_of_processes_gives_the_same_answer(
    compared: tuple[Path, str], run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "compare.json"
    words = [word if word != "1" else "2" for word in COMPARE]
    assert words.count("2") == 2, "jobs and draws"
    done = run(*words, "--sla", "p99_ttft_ms<=2000", "--out", out)
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text())["cases"] == json.loads(compared[0].read_text())["cases"]


def test_where_shift_cannot_run_the_reason_is_told_and_static_plans_are_compared(run: Run) -> None:
    done = run(*COMPARE, "--backend", "vllm", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert "Shift cannot run here: vllm has no sequence parallelism" in document["answer"][0]
    assert document["best_static"] is not None


def test_more_devices_than_there_are_is_a_mistake(run: Run) -> None:
    done = run(*COMPARE, "--devices", 4)
    assert done.exit_code == 2
    assert "--devices 4: 2xh100 has 2" in done.stderr
