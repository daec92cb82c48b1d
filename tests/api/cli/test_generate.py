"""`gearshift generate`: the JSON other programs read, the logits file, clear mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.kernels.native_build import find_compiler
from engine.text.tokenizer import Tokenizer
from tests.api.cli.conftest import Run


def _generate(run: Run, tiny_dir: Path, *words: object) -> dict[str, Any]:
    result = run("generate", "--model", tiny_dir, "--json", *words)
    assert result.exit_code == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_the_answer_holds_ids_text_and_reason(run: Run, tiny_dir: Path) -> None:
    answer = _generate(run, tiny_dir, "--prompt", "The engine", "--max-tokens", 8, "--ignore-eos")
    tokenizer = Tokenizer.from_dir(tiny_dir)
    assert len(answer["token_ids"]) == 8
    assert answer["finish_reason"] == "length"
    assert answer["text"] == tokenizer.decode(answer["token_ids"])
    assert answer["prompt_token_ids"] == tokenizer.encode("The engine")
    assert answer["dtype"] == "float32"
    assert answer["weight_bytes_per_rank"][0][0] > 800_000


def test_a_checkpoint_is_quantised_as_it_is_loaded(
    run: Run, tiny_dir: Path, tmp_path: Path
) -> None:
    words = ("--prompt-ids", "0,7,9", "--max-tokens", 1, "--ignore-eos", "--logits-out")
    answers = {
        "plain": _generate(run, tiny_dir, *words, tmp_path / "plain"),
        **{
            form: _generate(run, tiny_dir, *words, tmp_path / form, "--quantization", form)
            for form in ("int8", "w8a8")
        },
    }
    exact, int8, w8a8 = (np.load(tmp_path / name) for name in answers)
    assert 0 < abs(int8 - exact).max() < 0.1 * abs(exact).max()
    assert 0 < abs(w8a8 - int8).max() < 0.1 * abs(exact).max(), "activations are rounded, too"
    if find_compiler():  # without one a CPU makes them plain again
        bytes_of = {name: a["weight_bytes_per_rank"][0][0] for name, a in answers.items()}
        assert bytes_of["w8a8"] == bytes_of["int8"] < 0.6 * bytes_of["plain"]


def test_a_prompt_may_be_ids_and_logits_go_to_a_file(
    run: Run, tiny_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "logits"
    words = ("--prompt-ids", "0,7, 9", "--max-tokens", 5, "--ignore-eos", "--dtype", "float64")
    answer = _generate(run, tiny_dir, *words, "--logits-out", path)
    logits = np.load(path)
    assert logits.shape == (5, 515)
    assert logits.dtype == np.float64
    assert logits.argmax(axis=1).tolist() == answer["token_ids"]


def test_a_sharded_plan_says_the_same_as_one_rank(run: Run, tiny_dir: Path) -> None:
    words = ("--prompt-ids", "0,7,9,11,13", "--max-tokens", 10, "--dtype", "float64")
    words = (*words, "--ignore-eos", "--temperature", 0.9, "--seed", 4)
    alone = _generate(run, tiny_dir, *words)
    spread = _generate(run, tiny_dir, *words, "--plan", "sp=2,shift=4")
    assert spread["token_ids"] == alone["token_ids"]
    assert set(spread["steps_by_mode"]) == {"base", "shift"}
    assert spread["settings"]["plan"]["sp"] == 2
    assert spread["settings"]["shift"] == {"enabled": True, "threshold_tokens": 4}


def test_a_folder_without_a_tokenizer_still_continues_ids(
    run: Run, tiny_dir: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_dir, bare)
    (bare / "tokenizer.json").unlink()
    answer = _generate(run, bare, "--prompt-ids", "5", "--max-tokens", 2, "--ignore-eos")
    assert len(answer["token_ids"]) == 2
    assert answer["text"] == ""
    refused = run("generate", "--model", bare, "--prompt", "x")
    assert refused.exit_code == 2
    assert "no tokenizer.json" in refused.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "either --prompt"),
        (("--prompt", "x", "--prompt-ids", "1"), "either --prompt"),
        (("--prompt-ids", "1,two"), "'two' is not a token id"),
        (("--prompt-ids", "600"), "outside the vocabulary of 515"),
        (("--prompt", "x", "--plan", "xp=2"), "unknown word 'xp'"),
        (("--prompt", "x", "--plan", "sp=3"), "8 query heads do not divide by sp*tp = 3*1 = 3"),
        (("--prompt", "x", "--mode", "shift"), "needs a plan with Shift on"),
        (("--prompt", "x", "--mode", "fast"), "known: table, auto, base, shift and rungs such"),
        (("--prompt", "x", "--mode", "3x3"), "'3x3' is no rung of sp=1, tp=1"),
        (("--prompt", "x", "--rungs", "a,b"), "--rungs 'a,b': list base, shift and rungs"),
        (("--prompt", "x", "--dtype", "float8"), "known are auto, float64"),
        (("--prompt", "x", "--device", "tpu"), "known are cpu and cuda"),
        (("--prompt", "x", "--max-tokens", "5000"), "4096"),
        (("--prompt", "x", "--top-p", "0"), "top_p=0.0"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(
    run: Run, tiny_dir: Path, words: tuple[str, ...], said: str
) -> None:
    result = run("generate", "--model", tiny_dir, *words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr


def test_a_folder_that_is_no_model_is_named(run: Run, tmp_path: Path) -> None:
    result = run("generate", "--model", tmp_path, "--prompt-ids", "1")
    assert result.exit_code == 2
    assert "config.json: no such file" in result.stderr
