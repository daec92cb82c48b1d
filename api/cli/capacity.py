"""``gearshift capacity``: the highest load that a plan carries within an SLA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from api.cli.common import end_not_met, log, print_json, print_lines
from api.cli.engine_options import ModelNameOption, read_rungs
from api.cli.grouped import grouped
from api.cli.groups import LocalMachine, PinnedPlan, PrefixCacheOption
from api.cli.pictured import DrawnOutput
from api.cli.plan import PlannedWorkload
from api.cli.simulate import NamedCaps, Place


@dataclass(frozen=True, kw_only=True)
class Draws:
    """How many draws of the arrivals are looked at."""

    draws: Annotated[
        int, typer.Option(min=2, max=100, help="Draws of the arrivals at each rate.")
    ] = 5


@grouped(
    help_order="model workload plan sla seed draws cost_model hardware backend backend_set mode "
    "max_num_seqs max_num_batched_tokens max_step_ms max_model_len dtype kv_cache_mib block_size "
    "link prefix_cache out plot"
)
def capacity(
    model: ModelNameOption,
    planned: PlannedWorkload,
    plan: PinnedPlan,
    caps: NamedCaps,
    place: Place,
    machine: LocalMachine,
    draws: Draws,
    output: DrawnOutput,
    prefix_cache: PrefixCacheOption = None,
) -> None:
    """Find the highest rate (or number of clients) of a workload that a plan carries within the
    SLA, by simulation, with its interval, what binds there and whether it is a cliff.

    The workload's arrivals are thinned or repeated, so that its burstiness is kept.
    """
    from policies.sla import Sla
    from tuner.answers.carried import carried
    from tuner.answers.cases import Question

    sla = Sla.parse(planned.sla)
    question = Question(
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
    output.check()
    case = place.case(question, machine, has_intervals=True)
    answer = carried(question, case, sla=sla, num_draws=draws.draws, on_probe=_log_probe)
    output.write(answer.document)
    output.draw(answer.picture)
    if output.as_json:
        print_json(answer.document)
    else:
        print_lines([*answer.title.lines(), *answer.lines])
    if not answer.is_met:
        end_not_met()


def _log_probe(num_done: int) -> None:
    if num_done % 20 == 0:
        log(f"capacity: {num_done} points simulated")
