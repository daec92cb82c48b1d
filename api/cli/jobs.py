"""``gearshift jobs``: tuning jobs of the control plane. ``gearshift tune`` searches without one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from api.cli.common import end, log, print_json, print_line
from api.cli.control_plane import ControlPlane
from api.cli.engine_options import QuantizationOption
from api.cli.exit_codes import ExitCode
from api.cli.grouped import grouped
from api.cli.groups import GoalOptions, Served
from api.cli.interrupts import watched
from api.cli.tables import minute
from api.cli.trial_bar import TrialBar
from api.cli.tune_options import Search
from policies.numbers import counted

if TYPE_CHECKING:
    from api.clients.client import Client
    from api.schemas.tuning import TuningJobView

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As 'jobs list' has it: job_...")]
ENDS = {
    "succeeded": ExitCode.DONE,
    "failed": ExitCode.FAULT,
    "cancelled": ExitCode.NOT_MET,
    "infeasible": ExitCode.NOT_MET,
}


@grouped(
    help_order="model workload sla hardware devices trials seed budget objective use_all "
    "price_per_device_hour capacity_table capacity_seconds dtype quantization backend backend_set "
    "cost_model on_busy follow"
)
def create(
    search: Search,
    served: Served,
    wanted: GoalOptions,
    plane: ControlPlane,
    hardware: Annotated[
        str, typer.Option(help="'local' (the service's machine), or described: 8xh200.")
    ] = "local",
    quantization: QuantizationOption = None,
    cost_model: Annotated[
        str | None, typer.Option(metavar="ID", help="Use these step times: cm_...")
    ] = None,
    on_busy: Annotated[
        Literal["wait", "simulate"],
        typer.Option(help="When engines hold the devices that live trials need."),
    ] = "simulate",
    follow: Annotated[bool, typer.Option("--follow", help="Wait for its end; tell how.")] = False,
) -> None:
    """Queue a tuning job at the control plane.

    A folder of --model lies in the service's GEARSHIFT_MODEL_ROOT; an uploaded trace is named by
    its id, as in --workload wl_...,seconds=60.
    """
    model, workload, sla = search.require("needed for a tuning job")
    body = {
        "model": model,
        "workload": workload,
        "sla": sla,
        "num_devices": search.devices,
        "trials": search.trials,
        "seed": search.seed,
        "hardware": hardware,
        "dtype": None if served.dtype == "auto" else served.dtype,
        "quantization": quantization,
        "backend": served.chosen_backend,
        "cost_model_id": cost_model,
        "on_busy": on_busy,
        "options": {
            "objective": wanted.goal.objective.value,
            "price_per_device_hour": wanted.price_per_device_hour,
            "uses_all_devices": wanted.use_all,
            "capacity_table": search.capacity_table,
            "capacity_seconds": search.capacity_seconds,
            "budget": search.budget,
        },
    }
    with plane.client() as client:
        job = client.create_tuning_job(body)
        if follow:
            _follow(client, job, plane)
            return
    _tell(job, plane)
    if not plane.as_json:
        log(f"see how it goes: {plane.command(f'jobs follow {job.id}')}")


@grouped()
def list_jobs(
    plane: ControlPlane,
    state: Annotated[
        Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled", "infeasible"]
        | None,
        typer.Option(help="Of this state only."),
    ] = None,
) -> None:
    """List tuning jobs, newest first."""
    with plane.client() as client:
        found = client.list_tuning_jobs(state=state)
    plane.tell_rows(
        "jobs",
        found,
        ("id", "state", "trials", "model and hardware", "made"),
        lambda row: (
            row.id,
            row.state.value,
            _progress(row),
            f"{row.spec['model_dir']} on {row.spec['hardware']}",
            minute(row.created_at),
        ),
    )


@grouped()
def show(job_id: IdArgument, plane: ControlPlane) -> None:
    """Say how a tuning job stands, and what it asks."""
    with plane.client() as client:
        _tell(client.get_tuning_job(job_id), plane)


@grouped()
def follow_one(job_id: IdArgument, plane: ControlPlane) -> None:
    """Tell what a tuning job does until it ends. Ends with 3 where nothing meets the SLA."""
    with plane.client() as client:
        _follow(client, client.get_tuning_job(job_id), plane)


@grouped()
def cancel(job_id: IdArgument, plane: ControlPlane) -> None:
    """Ask a tuning job to end after its trial; what it found is kept."""
    with plane.client() as client:
        _tell(client.cancel_tuning_job(job_id), plane)


@grouped()
def delete(job_id: IdArgument, plane: ControlPlane) -> None:
    """Remove a tuning job that has ended, with its trials."""
    with plane.client() as client:
        client.delete_tuning_job(job_id)
    if plane.as_json:
        print_json({"removed": job_id})
    else:
        print_line(f"{job_id} is removed")


def _follow(client: Client, job: TuningJobView, plane: ControlPlane) -> None:
    """Tell every event from the first, and how the job stands at the end."""
    with TrialBar(job.num_trials, 0) as bar, watched(plane.command(f"jobs follow {job.id}")):
        bar.follow(client.follow_tuning_job(job.id))
    ended = client.get_tuning_job(job.id)
    _tell(ended, plane)
    end(ENDS[ended.state.value])


def _tell(found: TuningJobView, plane: ControlPlane) -> None:
    plane.tell(found, lambda job: list(_told(job, job.spec, plane)))


def _told(found: TuningJobView, spec: dict[str, Any], plane: ControlPlane) -> Iterator[str]:
    yield f"{found.id}: {found.state.value}, {_progress(found)} trials: {found.reason}"
    most = counted(spec["num_devices"], "device")
    yield f"  {spec['model_dir']} on {spec['hardware']}, at most {most}"
    yield f"  {spec['workload']}; {spec['sla']}; seed {spec['seed']}"
    if found.recommendation_id is not None:
        show = plane.command(f"recommendations show {found.recommendation_id}")
        yield f"  recommends: {show}"


def _progress(found: TuningJobView) -> str:
    return f"{found.trials_done}/{found.num_trials}"
