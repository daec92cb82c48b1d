"""``gearshift capacity``: the highest load that a plan carries within an SLA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.capacity_live import LiveServer, refuse_simulated
from api.cli.common import (
    end_interrupted,
    end_not_met,
    fail,
    log,
    print_json,
    print_lines,
    progress_bar,
    progress_console,
)
from api.cli.engine_options import read_rungs
from api.cli.grouped import grouped
from api.cli.groups import LocalMachine, PinnedPlan, PrefixCacheOption
from api.cli.pictured import DrawnOutput
from api.cli.plan import PlannedWorkload
from api.cli.simulate import NamedCaps, Place

if TYPE_CHECKING:
    from policies.sla import Sla
    from tuner.answers.cases import Question
    from tuner.capacity.search import OnProbe


@dataclass(frozen=True, kw_only=True)
class Draws:
    """How many draws of the arrivals are looked at."""

    draws: Annotated[
        int, typer.Option(min=2, max=100, help="Draws of the arrivals at each rate.")
    ] = 5


@grouped(
    help_order="model workload plan sla seed draws url seconds cost_model hardware backend "
    "backend_set mode "
    "max_num_seqs max_num_batched_tokens max_step_ms max_model_len dtype kv_cache_mib block_size "
    "link prefix_cache out plot"
)
def capacity(
    planned: PlannedWorkload,
    plan: PinnedPlan,
    caps: NamedCaps,
    place: Place,
    machine: LocalMachine,
    draws: Draws,
    live: LiveServer,
    output: DrawnOutput,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|DIR",
            help="Model by name, as in llama-3.1-70b, or a folder in Hugging Face format; with "
            "--url the name to ask the server for, by default the first it lists.",
        ),
    ] = None,
    prefix_cache: PrefixCacheOption = None,
) -> None:
    """Find the highest rate (or number of clients) of a workload that a plan, simulated, or a
    running server (--url) carries within the SLA, with its interval and what binds there.

    The workload's arrivals are thinned or repeated, so that its burstiness is kept. With --url
    Ctrl-C tells what was found so far.
    """
    from policies.sla import Sla
    from tuner.answers.carried import carried
    from tuner.capacity.document import capacity_lines, live_lines
    from tuner.pictures.loads import capacity_picture

    sla = Sla.parse(planned.sla)
    output.check()
    if live.url is not None:
        refuse_simulated(
            {
                "--hardware": place.hardware,
                "--cost-model": machine.cost_model,
                "--backend": place.chosen_backend,
                "--plan": plan.plan != PinnedPlan.plan,
                "--max-num-seqs": caps.max_num_seqs,
                "--max-num-batched-tokens": caps.max_num_batched_tokens,
                "--max-step-ms": caps.max_step_ms,
            }
        )
        document = live.document(model, planned.read_workload(), sla, seed=planned.seed)
        facts = title = [document["title"]]
    elif model is None:
        fail("--model is missing: name one to simulate, or --url of a running server")
    else:
        question = _question(model, planned, plan, caps, place, sla, prefix_cache)
        case = place.case(question, machine, has_intervals=True)
        with _progress() as show:
            answer = carried(question, case, sla=sla, num_draws=draws.draws, on_probe=show)
        document, facts, title = answer.document, [*answer.title.parts], answer.title.lines()
    output.write(document)
    output.draw(lambda: capacity_picture(document, facts=facts, sla=sla))
    if output.as_json:
        print_json(document)
    else:
        driven = live_lines(document) if "live" in document else []
        print_lines([*title, *capacity_lines(document), *driven])
    if document.get("is_interrupted"):
        end_interrupted()
    if document["capacity"]["load"] is None:
        end_not_met()


def _question(
    model: str,
    planned: PlannedWorkload,
    plan: PinnedPlan,
    caps: NamedCaps,
    place: Place,
    sla: Sla,
    prefix_cache: bool | None,
) -> Question:
    from tuner.answers.cases import Question

    return Question(
        model=model,
        spec=plan.spec,
        workload=planned.read_workload(),
        sla=sla,
        seed=planned.seed,
        mode=plan.mode,
        rungs=read_rungs(plan.rungs),
        caps=caps,
        served=place,
        prefix_cache=prefix_cache,
    )


@contextmanager
def _progress() -> Iterator[OnProbe]:
    """A bar over the loads that are looked at, on stderr; on a file or pipe a line now and then."""
    console = progress_console()
    if not console.is_terminal:
        yield _log_progress
        return
    with progress_bar(console) as bar:
        task = bar.add_task("capacity: loads in turn", total=None)

        def show(done: int, expected: int) -> None:
            bar.update(task, completed=done, total=expected)

        yield show


def _log_progress(done: int, expected: int) -> None:
    if done % 20 == 0:
        log(f"capacity: {done} of about {expected} runs simulated")
