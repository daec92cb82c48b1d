"""``gearshift generate``: continue one prompt under a parallel plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.common import fail, print_json, print_text
from api.cli.engine_options import (
    MOST_SEED,
    MOST_TOKENS,
    DeviceOption,
    JsonOption,
    ModelOption,
    QuantizationOption,
    check_device,
    find_tokenizer,
    read_dtype,
)
from api.cli.grouped import grouped
from api.cli.groups import PinnedPlan, check_writable, writing

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.generation import Generation
    from engine.spec.config import EngineConfig
    from engine.spec.request import SamplingParams
    from engine.text.tokenizer import Tokenizer

# Blocks beyond what the sequence fills: none of its steps then waits for one.
SPARE_BLOCKS = 4
BLOCK_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """What to continue, as text or as token ids."""

    prompt: Annotated[str | None, typer.Option(help="Text to continue.")] = None
    prompt_ids: Annotated[
        str | None, typer.Option(metavar="1,2,3", help="Token ids to continue.")
    ] = None

    def read(self, tokenizer: Tokenizer | None) -> tuple[int, ...]:
        """The token ids; ends where there is not one prompt, or none that can be read."""
        if (self.prompt is None) == (self.prompt_ids is None):
            fail("give either --prompt TEXT or --prompt-ids 1,2,3")
        if self.prompt_ids is not None:
            words = [word.strip() for word in self.prompt_ids.split(",")]
            wrong = [word for word in words if not word.isdecimal()]
            if wrong:
                fail(f"--prompt-ids: {wrong[0]!r} is not a token id; write 1,2,3")
            return tuple(int(word) for word in words)
        if tokenizer is None:
            fail("--prompt: the model folder has no tokenizer.json; use --prompt-ids")
        return tuple(tokenizer.encode(self.prompt or ""))


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How output tokens are chosen, and how many."""

    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to generate.")] = 16
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after EOS.")] = False
    temperature: Annotated[float, typer.Option(min=0.0, help="0 = greedy.")] = 0.0
    top_k: Annotated[int, typer.Option(min=0, help="0 = all tokens.")] = 0
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.0
    seed: Annotated[
        int, typer.Option(min=0, max=MOST_SEED, help="Same seed, same output, on any plan.")
    ] = 0

    @property
    def params(self) -> SamplingParams:
        """Raises RequestError where they do not go together."""
        from engine.spec.request import SamplingParams

        return SamplingParams(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
            max_tokens=self.max_tokens,
            ignore_eos=self.ignore_eos,
        )


@dataclass(frozen=True, kw_only=True)
class OneSequence:
    """How the prompt and its answer are computed."""

    dtype: Annotated[
        str,
        typer.Option(help="float64, float32, bfloat16, float16, or auto: as the checkpoint says."),
    ] = "auto"
    max_num_batched_tokens: Annotated[
        int,
        typer.Option(min=1, max=MOST_TOKENS, help="Tokens per step; longer prompts run in chunks."),
    ] = 2048
    device: DeviceOption = "cpu"
    quantization: QuantizationOption = None
    logits_out: Annotated[
        Path | None,
        typer.Option(help="Write float64 logits [output tokens, vocabulary] to this .npy file."),
    ] = None

    def config(self, model: Path, plan: PinnedPlan, *, max_len: int) -> EngineConfig:
        """An engine just large enough for one sequence of ``max_len`` tokens."""
        from engine.spec.config import EngineConfig
        from engine.spec.model import ModelConfig
        from engine.spec.settings import Caps

        if max_len > (room := ModelConfig.from_dir(model).max_positions):
            fail(f"prompt and --max-tokens are {max_len} tokens; the model has room for {room}")
        device = check_device(self.device)
        caps = Caps(max_num_seqs=1, max_num_batched_tokens=self.max_num_batched_tokens)
        return EngineConfig(
            model_dir=model,
            settings=plan.settings(caps),
            envelope=caps,
            dtype=read_dtype(self.dtype, model),
            quantisation=self.quantization,
            device=device,
            block_size=BLOCK_SIZE,
            num_kv_blocks=-(-max_len // BLOCK_SIZE) + SPARE_BLOCKS,
            return_logits=self.logits_out is not None,
        )

    def write_logits(self, made: Generation) -> None:
        """Write the file asked for, if any; end where it cannot be written."""
        if self.logits_out is None:
            return
        import numpy as np

        assert made.logits is not None, "the engine was asked for logits"
        # Through a file object: np.save would add a suffix to the name it was given.
        with writing(), self.logits_out.open("wb") as file:
            np.save(file, made.logits, allow_pickle=False)


@grouped(
    help_order="model plan mode prompt prompt_ids max_tokens logits_out ignore_eos dtype "
    "quantization temperature top_k top_p seed"
)
def generate(
    model: ModelOption,
    plan: PinnedPlan,
    prompt: PromptOptions,
    sampling: SamplingOptions,
    sequence: OneSequence,
    as_json: JsonOption = False,
) -> None:
    """Continue one prompt; the answer does not depend on the plan or the mode."""
    from engine.engine import Engine
    from engine.spec.model import ModelConfig

    ModelConfig.from_dir(model)  # says what is wrong with the folder before anything else does
    if sequence.logits_out is not None:
        check_writable(sequence.logits_out)
    tokenizer = find_tokenizer(model)
    ids = prompt.read(tokenizer)
    params = sampling.params
    config = sequence.config(model, plan, max_len=len(ids) + params.max_tokens)
    with Engine(config, tokenizer=tokenizer) as engine:
        made = engine.generate(ids, params)
        answer = _answer(engine, ids, made, params)
    sequence.write_logits(made)
    if as_json:
        print_json(answer)
    else:
        text = made.text if tokenizer is not None else ",".join(map(str, made.token_ids))
        print_text(f"{text}\n")


def _answer(
    engine: Engine, ids: tuple[int, ...], made: Generation, sampling: SamplingParams
) -> dict[str, Any]:
    steps = {mode: count for mode, count in engine.stats().steps.items() if count}
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
