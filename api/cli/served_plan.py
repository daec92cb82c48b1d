"""Model and plan of ``gearshift engine serve``, also in the words of vLLM and Arctic Inference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.common import fail
from api.cli.engine_options import MODEL_DIR, MOST_DEVICES
from api.cli.given import strength, strongest
from api.cli.groups import PlanOptions

# Options that name one degree of a plan, by the plan's word for it.
DEGREES = {
    "tp": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "dp": "data_parallel_size",
    "sp": "ulysses_sequence_parallel_size",
}
SHIFT, THRESHOLD = "enable_shift_parallel", "shift_parallel_threshold"


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """The model folder, as an argument or as an option."""

    model_tag: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="The same as --model.")
    ] = None
    model: Annotated[str | None, MODEL_DIR] = None

    def folder(self, ctx: typer.Context) -> Path:
        """The one named; ends where there is none, or two that differ."""
        words = strongest(ctx, {"model_tag": self.model_tag, "model": self.model})
        if not words:
            fail("no model: name its folder, as in --model DIR")
        if len(words) > 1:
            fail(f"two models: {' and '.join(words)}; name one")
        if _is_hub_name(words[0]):
            fail(f"{words[0]}: a name of a model hub; download the model and name its folder")
        return Path(words[0])


def _is_hub_name(word: str) -> bool:
    """Whether ``word`` reads like ``owner/model`` and is no folder of this machine."""
    owner, _, name = word.partition("/")
    is_path = owner in ("", ".", "..", "~") or Path(owner).exists()
    return bool(name) and "/" not in name and not is_path


def _degree(word: str, *names: str) -> Any:
    return typer.Option(*names, min=1, max=MOST_DEVICES, help=f"{word} of the plan.")


@dataclass(frozen=True, kw_only=True)
class ServedPlan(PlanOptions):
    """A plan, in one word or by its parts, whose modes the engine may time at its start."""

    tensor_parallel_size: Annotated[int | None, _degree("tp", "--tensor-parallel-size", "-tp")] = (
        None
    )
    pipeline_parallel_size: Annotated[
        int | None, _degree("pp", "--pipeline-parallel-size", "-pp")
    ] = None
    data_parallel_size: Annotated[int | None, _degree("dp", "--data-parallel-size", "-dp")] = None
    ulysses_sequence_parallel_size: Annotated[int | None, _degree("sp")] = None
    enable_shift_parallel: Annotated[
        bool, typer.Option("--enable-shift-parallel", help="Shift of the plan.")
    ] = False
    shift_parallel_threshold: Annotated[
        int | None, typer.Option(min=0, help="Tokens up to which a step runs as full TP.")
    ] = None
    mode_table: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="File or folder that keeps the measured mode table for the next start.",
        ),
    ] = None

    def in_one_word(self, ctx: typer.Context) -> ServedPlan:
        """The same with ``plan`` as given, or made of its parts.

        Ends where both are given, as strongly, and contradict each other.

        Raises:
            PlanError: a plan that cannot be read.
        """
        whole = strength(ctx, "plan")
        parts = {n: v for n, v in self._parts.items() if strength(ctx, n) >= max(whole, 1)}
        if not any(parts.values()):
            return self
        if all(strength(ctx, name) == whole for name in parts):
            self._check(parts)
            return self
        return replace(self, plan=_text(parts))

    @property
    def _parts(self) -> dict[str, int | bool]:
        """Every part by its option, named or not."""
        parts = {
            "tensor_parallel_size": self.tensor_parallel_size,
            "pipeline_parallel_size": self.pipeline_parallel_size,
            "data_parallel_size": self.data_parallel_size,
            "ulysses_sequence_parallel_size": self.ulysses_sequence_parallel_size,
            SHIFT: self.enable_shift_parallel,
            THRESHOLD: self.shift_parallel_threshold,
        }
        return {name: value for name, value in parts.items() if value is not None}

    def _check(self, parts: dict[str, int | bool]) -> None:
        spec = self.spec
        said = {name: getattr(spec.plan, axis) for axis, name in DEGREES.items()}
        said |= {SHIFT: spec.plan.shift, THRESHOLD: spec.threshold_tokens}
        wrong = [f"{_word(n)}={v}" for n, v in parts.items() if said[n] != v]
        if wrong:
            fail(f"--plan {self.plan} and {', '.join(wrong)} contradict each other; give one")


def _text(parts: dict[str, int | bool]) -> str:
    """A plan in one word."""
    words = [f"{axis}={parts[name]}" for axis, name in DEGREES.items() if parts.get(name)]
    threshold = parts.get(THRESHOLD)
    if threshold is not None:
        words.append(f"shift={threshold}")
    elif parts.get(SHIFT):
        words.append("shift")
    return ",".join(words)


def _word(name: str) -> str:
    return "--" + name.replace("_", "-")
