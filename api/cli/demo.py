"""``gearshift demo``: the whole loop on this machine, then on four paced devices."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from api.cli.common import fail
from api.cli.engine_options import MOST_SEED, JsonOption


def demo(
    trace: Annotated[
        Path | None, typer.Option(envvar="TRACE", help="Azure CSV; else one of its statistics.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", envvar="KEEP", help="Leave the service running at the end.")
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, max=MOST_SEED, help="Seed of weights and workloads.")
    ] = 1,
    live: Annotated[bool, typer.Option(help="Play the scene on real ranks.")] = True,
    paced: Annotated[bool, typer.Option(help="Play the scene on four paced devices.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Make a checkpoint, serve it, tune it through REST, apply the answer, change the load."""
    from rich.console import Console

    from api.clients.client import Client
    from api.demo import following, story
    from api.demo.processes import Children, DemoError
    from api.demo.scenes import live_scene, paced_day
    from api.demo.stage import Stage

    if trace is not None and not trace.is_file():
        fail(f"TRACE={trace}: no such file")
    console = Console(stderr=as_json)
    source = str(trace.resolve()) if trace else None
    key = secrets.token_urlsafe(24)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gearshift-demo-")))
        children = stack.enter_context(Children(folder, _environment(folder, key)))
        try:
            _, service = children.start("service", "serve", "--port", "0")
            client = stack.enter_context(Client(service["url"], key))
            console.print(f"control plane at {service['url']} (API at {service['url']}/docs)")
            stage = Stage(
                console,
                client,
                children,
                control_url=service["url"],
                folder=folder,
                seed=seed,
            )
            urls = [story.play(stage, live_scene(source))] if live else []
            urls += [following.play(stage, paced_day())] if paced else []
        except DemoError as error:
            fail(str(error))
        if keep:
            console.print(f"still running: {service['url']} (key {key}), engines {urls}")
            typer.prompt("press enter to end everything", default="", show_default=False)


def _environment(folder: Path, key: str) -> dict[str, str]:
    """Settings of the demo's own service: a database of its own, a quick controller.

    Twice the cores as devices, so that the tuning job may run beside the idle engine.
    """
    return {
        "GEARSHIFT_DATA_DIR": str(folder),
        "GEARSHIFT_DATABASE_URL": f"sqlite:///{folder / 'gearshift.db'}",
        "GEARSHIFT_MODEL_ROOT": str(folder),
        "GEARSHIFT_ADMIN_KEY": key,
        "GEARSHIFT_CONTROL_KEY": key,
        "GEARSHIFT_DEVICES": str(2 * (os.cpu_count() or 1)),
        "GEARSHIFT_CONTROL_INTERVAL_S": "2",
        "GEARSHIFT_CONTROL_WINDOW_S": "8",
        "GEARSHIFT_COOL_DOWN_DOWN_S": "10",
        "GEARSHIFT_CAPACITY_INTERVAL_S": "10",
        "GEARSHIFT_CAPACITY_DWELL_S": "20",
        "GEARSHIFT_LOG_LEVEL": "warning",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
