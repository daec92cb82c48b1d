"""``gearshift profile``: measure this machine and fit its cost model."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.common import fail, print_json
from api.cli.engine_options import (
    MOST_DEVICES,
    DeviceOption,
    JsonOption,
    LinkOption,
    QuantizationOption,
    check_device,
    read_dtype,
    read_link,
)
from api.cli.grouped import grouped
from api.cli.groups import check_writable, writing
from api.cli.profile_server import ProfiledServer, write_profile
from policies.numbers import short

if TYPE_CHECKING:
    from rich.table import Table

    from tuner.profiling.profile import Profile
    from tuner.profiling.run import ProfileSpec
    from tuner.step_model.model import ErrorReport, StepModel

# The part of --seconds that is kept for the fit, after everything is measured.
FIT_S = 1.0
# A profile that took longer than asked for by more than this factor says so.
TOLERANCE = 1.2


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
    quantization: QuantizationOption = None
    device: DeviceOption = "cpu"
    link: LinkOption = None
    seconds: Annotated[
        float,
        typer.Option(
            min=1,
            max=86_400,
            help="About how long all of it takes; of a server, each plan beside its start. Starts "
            "and the least number of repeats need about 25 of them in each round, for a small "
            "model on two idle cores; larger models and more ranks need more. What they needed is "
            "told at the end.",
        ),
    ] = 40.0
    rounds: Annotated[
        int,
        typer.Option(
            min=1,
            max=100,
            help="Start and measure everything so often within the seconds, where the machine's "
            "speed drifts.",
        ),
    ] = 1
    threads_per_rank: Annotated[
        int, typer.Option(min=1, max=1024, help="Threads of each CPU rank; a profile is of one.")
    ] = 1

    def refuse_beside_server(self) -> None:
        """End where something is named that a server's own start decides."""
        usual = Measuring()
        for name in ("devices", "quantization", "link", "rounds", "threads_per_rank"):
            if getattr(self, name) != getattr(usual, name):
                fail(f"--{name.replace('_', '-')}: of this machine; a server's start decides it")

    def spec(self, folder: Path, *, spent_s: float) -> ProfileSpec:
        """The same for the model in ``folder``, of whose seconds some are spent; ends on a
        mistake."""
        from tuner.profiling.run import ProfileSpec

        return ProfileSpec(
            model_dir=folder,
            num_ranks=self.devices,
            dtype=read_dtype(self.dtype, folder),
            device=check_device(self.device),
            link=read_link(self.link),
            seconds=max(0.0, self.seconds - spent_s),
            rounds=self.rounds,
            threads_per_rank=self.threads_per_rank,
            quantisation=self.quantization,
        )


@grouped(
    help_order="out model devices dtype quantization device link seconds rounds threads_per_rank "
    "url engine engine_command plan max_num_seqs max_num_batched_tokens start_timeout_s api_key "
    "api_key_file"
)
def profile(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the profile is written.")],
    measuring: Measuring,
    server: ProfiledServer,
    as_json: JsonOption = False,
) -> None:
    """Measure operators, collectives and passes on this machine and fit its cost model.

    The cost model goes into the data folder (GEARSHIFT_DATA_DIR), where simulate and tune look
    for this machine's newest. With --url or --engine a server is looked at from outside instead:
    prompts alone, streams side by side, and a load that checks what was made of them; simulate,
    capacity and plan take its profile as --hardware FILE.
    """
    check_writable(out)
    if server.is_asked:
        _profile_server(server, measuring, out, as_json=as_json)
    else:
        _profile_here(measuring, out, as_json=as_json)


def _profile_server(
    server: ProfiledServer, measuring: Measuring, out: Path, *, as_json: bool
) -> None:
    measuring.refuse_beside_server()

    from api.cli.clock_bar import clock_bar

    with clock_bar("profile", measuring.seconds * len(server.plan or "1")) as say:
        found = server.profile(
            measuring.model,
            dtype=measuring.dtype,
            device=check_device(measuring.device),
            seconds=measuring.seconds,
            say=lambda text: say(f"profile: {text}"),
        )
    write_profile(found, out, as_json=as_json)


def _profile_here(measuring: Measuring, out: Path, *, as_json: bool) -> None:
    begun_s = time.perf_counter()

    from api.cli.clock_bar import clock_bar  # what draws it is slow to load
    from engine.spec.model import ModelConfig
    from tuner.profiling.run import reference_model, run_profile
    from tuner.step_model.files import check_cost_model_dir, save_cost_model
    from tuner.step_model.fit import fit_step_model
    from tuner.step_model.quality import Quality

    check_cost_model_dir()
    with ExitStack() as stack:
        folder = measuring.model or stack.enter_context(reference_model())
        spent_s = time.perf_counter() - begun_s + FIT_S
        spec = measuring.spec(folder, spent_s=spent_s)
        with clock_bar("profile", measuring.seconds) as say:
            measured = run_profile(spec, on_event=lambda text: say(f"profile: {text}"))
        with writing():
            out.write_text(json.dumps(measured.to_json()))
        step_model = fit_step_model(measured, ModelConfig.from_dir(folder))
    with writing():
        saved = save_cost_model(step_model)
    quality = Quality.of(step_model.error)
    document = {
        "profile": str(out),
        "cost_model": step_model.id,
        "file": str(saved),
        "weights": step_model.weights,
        "quality": quality.to_json(seconds=measuring.seconds, rounds=measuring.rounds),
        "took": _took(measured, asked_s=measuring.seconds, total_s=time.perf_counter() - begun_s),
    }
    if as_json:
        print_json(document | {"error": asdict(step_model.error)})
    else:
        _print(step_model, document)


def _took(measured: Profile, *, asked_s: float, total_s: float) -> dict[str, float]:
    """Seconds asked for and taken, and how many of them were no choice."""
    assert measured.took is not None, "a profile of this version says how long it took"
    return {
        "asked_s": asked_s,
        "total_s": total_s,
        "fixed_s": measured.took.fixed_s + total_s - measured.took.total_s,
    }


def _print(step_model: StepModel, document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    error = step_model.error
    table = Table("left out", "steps", "error", "bias", title="steps of plans never fitted")
    for group in error.groups:
        table.add_row(group.plan, str(group.num_steps), f"{group.mape:.1%}", f"{group.bias:+.1%}")
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(table, soft_wrap=False)
    if any(group.parts for group in error.groups):
        console.print(_parts_table(error), soft_wrap=False)
    used = "on" if error.is_residual_active else "off (the roofline alone is better)"
    console.print(
        f"{step_model.machine}{step_model.other_weights}\nresidual {used}; 90 % of steps within "
        f"{error.step_interval:.1%}, whole plans within {error.plan_interval:.1%}"
    )
    took, quality = document["took"], document["quality"]
    console.print(_took_text(**took))
    console.print(quality["verdict"])
    if quality["advice"] is not None:
        console.print(quality["advice"])
    kept = f"cost model {document['cost_model']} in {document['file']}"
    console.print(f"profile {document['profile']}, {kept}")


def _parts_table(error: ErrorReport) -> Table:
    from rich.table import Table

    title = "parts of their steps, mean ms"
    table = Table("left out", "part", "steps", "measured", "predicted", title=title)
    for group in error.groups:
        for part in group.parts:
            numbers = (short(1e3 * part.measured_s), short(1e3 * part.predicted_s))
            table.add_row(group.plan, part.part, str(part.num_steps), *numbers)
    return table


def _took_text(*, asked_s: float, total_s: float, fixed_s: float) -> str:
    fixed = f"{fixed_s:.0f} s of it for starts and least repeats"
    if total_s <= TOLERANCE * asked_s:
        return f"took {total_s:.0f} s, {fixed}"
    return f"took {total_s:.0f} s, {fixed}: --seconds {asked_s:g} is less than this needs here"
