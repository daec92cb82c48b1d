"""Options that `generate` and `engine serve` share, read and checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.common import fail
from engine.spec.settings import ModePin

if TYPE_CHECKING:
    from engine.spec.model import DType
    from engine.spec.plan import PlanSpec
    from engine.spec.settings import Caps, Settings
    from engine.text.tokenizer import Tokenizer

ModelOption = Annotated[
    Path, typer.Option("--model", metavar="DIR", help="Model folder in Hugging Face format.")
]
ModelNameOption = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME|DIR",
        help="Model by name, as in llama-3.1-70b, or a folder in Hugging Face format.",
    ),
]
PlanOption = Annotated[
    str,
    typer.Option(metavar="PLAN", help="As in 'sp=2,tp=2,shift=256': dp, pp, sp, tp and shift."),
]
ModeOption = Annotated[
    ModePin,
    typer.Option(
        help="How steps of a Shift plan run: by the threshold (auto), or all in one mode."
    ),
]
ServeModeOption = Annotated[
    ModePin | None,
    typer.Option(
        help="How steps of a Shift plan run: by measured times (table), by the threshold (auto), "
        "or all in one mode; by default table for a plan that names no threshold, else auto."
    ),
]
ModeTableOption = Annotated[
    Path | None,
    typer.Option(
        "--mode-table",
        metavar="PATH",
        help="File or folder that keeps the measured mode table for the next start.",
    ),
]
NoOverlapOption = Annotated[
    bool, typer.Option("--no-overlap", help="Schedule a step only when the one before has ended.")
]
NoParallelSamplingOption = Annotated[
    bool, typer.Option("--no-parallel-sampling", help="Every rank samples all rows.")
]
NoPrefixCacheOption = Annotated[
    bool, typer.Option("--no-prefix-cache", help="Compute equal beginnings of prompts again.")
]
SpareRanksOption = Annotated[
    int, typer.Option(min=0, help="Warm processes that wait to take a dead rank's place.")
]
DTypeOption = Annotated[
    str,
    typer.Option(help="float64, float32, bfloat16, float16, or auto: as the checkpoint says."),
]
WideDTypeOption = Annotated[
    str,
    typer.Option(
        help="bf16, fp16, fp32, fp64 (or spelled out), fp8 on described hardware, or auto: as the "
        "model says."
    ),
]
BackendOption = Annotated[
    str | None,
    typer.Option(
        help="Serving system whose host times and defaults apply to described hardware: "
        "gearshift, vllm, arctic, ...; by default gearshift."
    ),
]
DeviceOption = Annotated[str, typer.Option(help="cpu or cuda. Nothing is guessed.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def read_dtype(word: str, model_dir: Path) -> DType:
    """The number format of ranks that ``word`` names; ``auto`` asks the checkpoint."""
    from engine.spec.model import ModelConfig
    from tuner.described.parse import read_rank_dtype

    return read_rank_dtype(word, ModelConfig.from_dir(model_dir))


def read_settings(spec: PlanSpec, caps: Caps, mode: ModePin | None) -> Settings:
    """Settings of a new engine. Without a mode: an operator who names a threshold wants it
    obeyed, and a Shift plan without one goes by measured times."""
    from engine.spec.plan import DEFAULT_SHIFT_THRESHOLD
    from engine.spec.settings import Settings

    threshold = spec.threshold_tokens
    if mode is None:
        mode = ModePin.TABLE if spec.plan.shift and threshold is None else ModePin.AUTO
    return Settings(
        plan=spec.plan,
        threshold_tokens=DEFAULT_SHIFT_THRESHOLD if threshold is None else threshold,
        caps=caps,
        pin=mode,
    )


def check_device(word: str) -> str:
    """``cpu`` or ``cuda``, and the latter only where torch can use it."""
    if word not in ("cpu", "cuda"):
        fail(f"--device {word!r}: known are cpu and cuda")
    if word == "cuda":
        import torch

        if not torch.cuda.is_available():
            fail("--device cuda: this installation of torch finds no CUDA device")
    return word


def refuse_of_this_machine(**options: object) -> None:
    """End where one of ``options`` is named beside described hardware, which ignores them."""
    named = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if named:
        fail(f"{', '.join(named)}: of this machine only; leave out --hardware, or that")


def find_tokenizer(model_dir: Path) -> Tokenizer | None:
    """The folder's tokenizer, or None where it brings none."""
    from engine.text.tokenizer import Tokenizer

    has_one = (model_dir / "tokenizer.json").exists()
    return Tokenizer.from_dir(model_dir) if has_one else None
