from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from api.cli.vllm_flags import NEEDLESS, ONLY, REFUSED
from tests.api.cli.conftest import Run
from tests.api.cli.served import ALONE, serving

# Where only the words matter: ranks and a front take seconds to start.
PACED = ("--paced", "2xh200", "--dtype", "bfloat16", *ALONE)


def policy_of(*words: object) -> dict[str, Any]:
    """The policy in force of an engine served with these words."""
    with serving(*words) as served:
        found: dict[str, Any] = served.http.get("/v1/engine/policy").json()
        card = served.http.get("/v1/models").json()["data"][0]
        return {**found, "model": card["id"], "max_model_len": card["max_model_len"]}


def write(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def test_a_command_of_vllm_serves_with_its_plan_caps_and_names(tiny_dir: Path) -> None:
    found = policy_of(
        tiny_dir, "-tp", 2, "--max-num-seqs", 32, "--max_num_batched_tokens", "1k",
        "--max-model-len", "auto", "--served-model-name", "m", "--no-enable-prefix-caching",
        "--dtype", "float", "--trust-remote-code", "--scheduling-policy", "priority",
        "--kv-cache-dtype=auto",
    )  # fmt: skip
    assert found["plan"] == {"dp": 1, "pp": 1, "sp": 1, "tp": 2}
    assert (found["caps"]["max_num_seqs"], found["caps"]["max_num_batched_tokens"]) == (32, 1000)
    assert found["scheduler"]["order"] == "priority"
    assert found["model"] == "m"


def test_a_config_file_gives_options_and_the_command_line_wins(
    tiny_dir: Path, tmp_path: Path
) -> None:
    file = write(
        tmp_path / "config.yml",
        f"model: {tiny_dir}\ntensor-parallel-size: 2\ndata-parallel-size: 2\nmax_num_seqs: 16\n"
        "max-num-batched-tokens: 256\nenable-prefix-caching: false\ndisable-log-requests: true\n"
        "enable-lora: false\nserved-model-name: [m]\n",
    )
    found = policy_of("--config", file, "-tp", 1, "--max-num-seqs", 8, *PACED)
    assert found["plan"] == {"dp": 2, "pp": 1, "sp": 1, "tp": 1}
    assert (found["caps"]["max_num_seqs"], found["caps"]["max_num_batched_tokens"]) == (8, 256)
    assert found["model"] == "m"


def test_auto_caps_are_those_of_the_place_and_a_plan_wins_over_its_parts_in_the_file(
    tiny_dir: Path, tmp_path: Path
) -> None:
    auto = ("--max-num-seqs", "auto", "--max-num-batched-tokens", "auto")
    here = policy_of(tiny_dir, *auto, *ALONE)["caps"]
    assert (here["max_num_seqs"], here["max_num_batched_tokens"]) == (64, 2048)
    file = write(tmp_path / "c.yml", "pipeline-parallel-size: 2\n")
    there = policy_of(
        tiny_dir, *auto, *PACED, "--backend", "vllm", "--config", file, "--plan", "tp=1"
    )
    assert there["caps"]["max_num_seqs"] == 1024
    assert there["plan"]["pp"] == 1


def test_a_shift_plan_in_the_words_of_arctic(tiny_dir: Path) -> None:
    found = policy_of(
        tiny_dir, "--ulysses-sequence-parallel-size", 2, "--enable-shift-parallel",
        "--shift-parallel-threshold", 32, *PACED,
    )  # fmt: skip
    assert found["plan"]["sp"] == 2
    assert found["shift"] == {"enabled": True, "threshold_tokens": 32}


ARCTIC = ("--paced", "4xh200", "--dtype", "bfloat16", "--backend", "arctic")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--plan", "tp=1", "-tp", 2), "--plan tp=1 and --tensor-parallel-size=2 contradict"),
        (("--plan", "sp=4,shift", *ARCTIC), "steps in base and shift only; add --rungs base,shift"),
        (("--plan", "sp=2", "--enable-shift-parallel"), "--enable-shift-parallel=True contradict"),
        (("--model", "other"), "two models: "),
        (("--gpu-memory-utilization", 0.9), "add --device cuda, or name --kv-cache-mib"),
        (("--kv-cache-dtype", "fp8"), "known here: auto"),
        (("--quantization", "awq"), "'--quantization' / '-q'"),
        (("-q", "fp8", "--paced", "1xh200"), "no weights are loaded with --paced; name the format"),
        (("--max-num-seqs", "many"), "as in 8192 or 8k, or auto"),
        (("--max-num-seqs", "-1"), "as in 8192 or 8k, or auto"),
        (("--max-num-batched-tokens", "9" * 30), "as in 8192 or 8k, or auto"),
        (("--max-num-seqs", 0), "at least 1 and at most 131072"),
        (("--max-model-len", "8kk"), "--max-model-len '8kk'"),
        (("-tp", 0), "'-tp'"),
        (("--seed=0",), "--seed: a request without a seed gets one of its own"),
    ],
)
def test_what_cannot_be_is_one_line(
    run: Run, tiny_dir: Path, words: tuple[object, ...], message: str
) -> None:
    done = run("engine", "serve", tiny_dir, *words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("flag", sorted(REFUSED))
def test_a_flag_without_a_meaning_here_is_refused_by_name(
    run: Run, tiny_dir: Path, tmp_path: Path, flag: str
) -> None:
    for words in ((flag, "x"), ("--config", write(tmp_path / "c", f"{flag.lstrip('-')}: x\n"))):
        if flag.startswith("--") or words[0] == flag:
            done = run("engine", "serve", tiny_dir, *words)
            assert done.exit_code == 2
            assert f"error: {flag}: " in done.stderr


def test_no_flag_is_in_two_tables() -> None:
    assert len({*NEEDLESS, *ONLY, *REFUSED}) == len(NEEDLESS) + len(ONLY) + len(REFUSED)


def test_a_name_of_a_hub_says_what_to_do(run: Run) -> None:
    done = run("engine", "serve", "meta-llama/Llama-3.1-8B")
    assert "download the model and name its folder" in done.stderr
    assert "no model: name its folder" in run("engine", "serve").stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "no YAML"),
        ("- a", "must be keys and values"),
        ("tensor-parallel-sise: 2", "did you mean 'tensor-parallel-size'"),
        ("port: [1, 2]", "port: must be one value"),
        ("port:", "port: must be one value"),
        ("config: other.yml", "unknown key 'config'"),
        ("port: many", "--port"),
        ("\0", "no YAML"),
    ],
)
def test_a_config_file_that_cannot_be_used_is_one_line(
    run: Run, tiny_dir: Path, tmp_path: Path, text: str, message: str
) -> None:
    done = run("engine", "serve", tiny_dir, "--config", write(tmp_path / "c.yml", text))
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    absent = run("engine", "serve", tiny_dir, "--config", tmp_path / "none.yml")
    assert "No such file" in absent.stderr
