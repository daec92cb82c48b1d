"""``gearshift profile``: measure this machine and fit its cost model."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.common import log, print_json
from api.cli.engine_options import (
    MOST_DEVICES,
    DeviceOption,
    JsonOption,
    LinkOption,
    check_device,
    read_dtype,
    read_link,
)
from api.cli.grouped import grouped
from api.cli.groups import check_writable, writing

if TYPE_CHECKING:
    from tuner.profiling.run import ProfileSpec
    from tuner.step_model.model import StepModel


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """What is measured, on which ranks, and for how long."""

    model: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Profile this model's shapes; by default a small random one's."
        ),
    ] = None
    devices: Annotated[
        int,
        typer.Option(
            min=1, max=MOST_DEVICES, help="Ranks at work at once, up to one per core or device."
        ),
    ] = 2
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, ..., or auto.")] = "auto"
    device: DeviceOption = "cpu"
    link: LinkOption = None
    seconds: Annotated[
        float, typer.Option(min=1, max=86_400, help="About how long to measure.")
    ] = 40.0
    rounds: Annotated[
        int,
        typer.Option(
            min=1, max=100, help="Measure everything so often, where the machine's speed drifts."
        ),
    ] = 1

    def spec(self, folder: Path) -> ProfileSpec:
        """The same for the model in ``folder``; ends on a mistake."""
        from tuner.profiling.run import ProfileSpec

        return ProfileSpec(
            model_dir=folder,
            num_ranks=self.devices,
            dtype=read_dtype(self.dtype, folder),
            device=check_device(self.device),
            link=read_link(self.link),
            seconds=self.seconds,
            rounds=self.rounds,
        )


@grouped()
def profile(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the profile is written.")],
    measuring: Measuring,
    as_json: JsonOption = False,
) -> None:
    """Measure operators, collectives and passes on this machine and fit its cost model.

    The cost model goes into the data folder (GEARSHIFT_DATA_DIR), where simulate and tune look
    for this machine's newest.
    """
    import json

    from engine.spec.model import ModelConfig
    from tuner.profiling.run import reference_model, run_profile
    from tuner.spec.machine import cost_model_dir
    from tuner.step_model.files import save_cost_model
    from tuner.step_model.fit import fit_step_model

    check_writable(out)
    with writing():
        cost_model_dir().mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = measuring.model or stack.enter_context(reference_model())
        spec = measuring.spec(folder)
        measured = run_profile(spec, on_event=lambda text: log(f"profile: {text}"))
        with writing():
            out.write_text(json.dumps(measured.to_json()))
        step_model = fit_step_model(measured, ModelConfig.from_dir(folder))
    with writing():
        saved = save_cost_model(step_model)
    document = {"profile": str(out), "cost_model": step_model.id, "file": str(saved)}
    if as_json:
        print_json(document | {"error": _error_json(step_model)})
    else:
        _print(step_model, document)


def _error_json(step_model: StepModel) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(step_model.error)


def _print(step_model: StepModel, document: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    error = step_model.error
    table = Table("left out", "steps", "error", "bias", title="steps of plans never fitted")
    for group in error.groups:
        table.add_row(group.plan, str(group.num_steps), f"{group.mape:.1%}", f"{group.bias:+.1%}")
    console = Console()
    console.print(table)
    used = "on" if error.is_residual_active else "off (the roofline alone is better)"
    console.print(
        f"{step_model.machine}\nresidual {used}; 90 % of steps within "
        f"{error.step_interval:.1%}, whole plans within {error.plan_interval:.1%}"
    )
    console.print(f"profile {document['profile']}, cost model {document['cost_model']}")
