"""``gearshift generate``: continue one prompt under a parallel plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.common import fail, print_json
from api.cli.engine_options import (
    DeviceOption,
    DTypeOption,
    JsonOption,
    ModelOption,
    ModeOption,
    PlanOption,
    check_device,
    find_tokenizer,
    read_dtype,
    read_settings,
)
from engine.spec.settings import ModePin

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.generation import Generation
    from engine.spec.config import EngineConfig
    from engine.spec.request import SamplingParams
    from engine.text.tokenizer import Tokenizer

# Blocks beyond what the sequence fills: none of its steps then waits for one.
SPARE_BLOCKS = 4
BLOCK_SIZE = 16


def generate(
    model: ModelOption,
    plan: PlanOption = "tp=1",
    mode: ModeOption = ModePin.AUTO,
    prompt: Annotated[str | None, typer.Option(help="Text to continue.")] = None,
    prompt_ids: Annotated[
        str | None, typer.Option(metavar="1,2,3", help="Token ids to continue.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to generate.")] = 16,
    logits_out: Annotated[
        Path | None,
        typer.Option(help="Write float64 logits [output tokens, vocabulary] to this .npy file."),
    ] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after EOS.")] = False,
    dtype: DTypeOption = "auto",
    temperature: Annotated[float, typer.Option(min=0.0, help="0 = greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="0 = all tokens.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same output, on any plan.")] = 0,
    max_num_batched_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens per step; longer prompts run in chunks.")
    ] = 2048,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Continue one prompt; the answer does not depend on the plan or the mode."""
    from engine.engine import Engine
    from engine.spec.request import SamplingParams

    tokenizer = find_tokenizer(model)
    ids = _read_prompt(prompt, prompt_ids, tokenizer)
    sampling = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        max_tokens=max_tokens,
        ignore_eos=ignore_eos,
    )
    config = _config(
        _Setting(
            model_dir=model,
            plan=plan,
            mode=mode,
            dtype=dtype,
            device=check_device(device),
            max_num_batched_tokens=max_num_batched_tokens,
            max_len=len(ids) + max_tokens,
            wants_logits=logits_out is not None,
        )
    )
    with Engine(config, tokenizer=tokenizer) as engine:
        made = engine.generate(ids, sampling)
        answer = _answer(engine, ids, made, sampling)
    if logits_out is not None:
        _write_logits(logits_out, made)
    if as_json:
        print_json(answer)
    else:
        typer.echo(made.text if tokenizer is not None else ",".join(map(str, made.token_ids)))


@dataclass(frozen=True, kw_only=True)
class _Setting:
    model_dir: Path
    plan: str
    mode: ModePin
    dtype: str
    device: str
    max_num_batched_tokens: int
    max_len: int
    wants_logits: bool


def _config(setting: _Setting) -> EngineConfig:
    """An engine just large enough for one sequence."""
    from engine.spec.config import EngineConfig
    from engine.spec.plan import parse_plan
    from engine.spec.settings import Caps

    spec = parse_plan(setting.plan)
    caps = Caps(max_num_seqs=1, max_num_batched_tokens=setting.max_num_batched_tokens)
    return EngineConfig(
        model_dir=setting.model_dir,
        settings=read_settings(spec, caps, setting.mode),
        envelope=caps,
        dtype=read_dtype(setting.dtype, setting.model_dir),
        device=setting.device,
        block_size=BLOCK_SIZE,
        num_kv_blocks=-(-setting.max_len // BLOCK_SIZE) + SPARE_BLOCKS,
        return_logits=setting.wants_logits,
    )


def _read_prompt(
    prompt: str | None, prompt_ids: str | None, tokenizer: Tokenizer | None
) -> tuple[int, ...]:
    if (prompt is None) == (prompt_ids is None):
        fail("give either --prompt TEXT or --prompt-ids 1,2,3")
    if prompt_ids is not None:
        words = [word.strip() for word in prompt_ids.split(",")]
        wrong = [word for word in words if not word.isdecimal()]
        if wrong:
            fail(f"--prompt-ids: {wrong[0]!r} is not a token id; write 1,2,3")
        return tuple(int(word) for word in words)
    if tokenizer is None:
        fail("--prompt: the model folder has no tokenizer.json; use --prompt-ids")
    return tuple(tokenizer.encode(prompt or ""))


def _answer(
    engine: Engine, ids: tuple[int, ...], made: Generation, sampling: SamplingParams
) -> dict[str, Any]:
    steps = {mode.value: count for mode, count in engine.stats().steps.items() if count}
    return {
        "token_ids": list(made.token_ids),
        "text": made.text,
        "finish_reason": made.finish_reason.value,
        "prompt_token_ids": list(ids),
        "settings": engine.settings.to_json(),
        "steps_by_mode": steps,
        "dtype": engine.config.dtype.value,
        "seed": sampling.seed,
        "weight_bytes_per_rank": [list(info.weight_bytes) for info in engine.executor_infos],
    }


def _write_logits(path: Path, made: Generation) -> None:
    import numpy as np

    assert made.logits is not None, "the engine was asked for logits"
    try:
        # Through a file object: np.save would add a suffix to the name it was given.
        with path.open("wb") as file:
            np.save(file, made.logits, allow_pickle=False)
    except OSError as error:
        fail(f"--logits-out {path}: {error.strerror}")
