"""``gearshift capacity``: the highest load that a plan carries within an SLA."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
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
)
from api.cli.grouped import grouped
from api.cli.groups import LocalMachine, PinnedPlan, PlannedWorkload, PrefixCacheOption
from api.cli.pictured import DrawnOutput
from api.cli.place import NamedCaps, Place
from api.cli.progress import stage_bar
from policies.numbers import counted

if TYPE_CHECKING:
    from policies.sla import Sla
    from tuner.answers.carried import Carried
    from tuner.answers.cases import Case, Question


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

    The workload's arrivals are thinned or repeated, so that its burstiness is kept. Ctrl-C tells
    what was found so far.
    """
    from policies.sla import Sla
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
        question = place.question(model, plan, planned, caps, sla=sla, prefix_cache=prefix_cache)
        case = place.case(question, machine, has_intervals=True)
        answer = _look(question, case, sla, draws.draws)
        document, facts, title = answer.document, [*answer.title.parts], answer.title.lines()
    output.write(document)
    output.draw(lambda: capacity_picture(document, facts=facts, sla=sla))
    if output.as_json:
        print_json(document)
    else:
        driven = live_lines(document) if "live" in document else []
        print_lines([*title, *capacity_lines(document), *driven])
    if document["is_interrupted"]:
        end_interrupted()
    if document["capacity"]["load"] is None:
        end_not_met()


def _look(question: Question, case: Case, sla: Sla, num_draws: int) -> Carried:
    """What the case carries; after Ctrl-C as far as that was found."""
    from tuner.answers.carried import CarriedStopped, carried

    with stage_bar("capacity", _log_progress) as bar:
        show = partial(bar, "loads in turn")
        try:
            return carried(question, case, sla=sla, num_draws=num_draws, on_probe=show)
        except CarriedStopped as stopped:
            looks = len(stopped.answer.found.probes)
            log(f"capacity: interrupted after {counted(looks, 'run')}; there is no interval yet")
            return stopped.answer


def _log_progress(_stage: str, done: int, expected: int) -> None:
    if done % 20 == 0:
        log(f"capacity: {done} of about {expected} runs simulated")
