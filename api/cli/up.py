"""``gearshift up``: control plane, a first tune and a tuned engine, in one command."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.common import fail, log, print_json, print_line
from api.cli.engine_options import JsonOption, check_device
from api.cli.exit_codes import ExitCode
from api.cli.first_tune import (
    START_S,
    USUAL_PLAN,
    Countdown,
    FirstTune,
    Found,
    Wanted,
    first_tune,
)
from api.cli.grouped import grouped

if TYPE_CHECKING:
    from api.clients.client import Client
    from api.demo.processes import Children
    from api.schemas.tuning import RecommendationView

REGISTER_S = 120.0
LOOK_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where both servers listen."""

    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the control plane.")] = 8700
    engine_port: Annotated[int, typer.Option(min=0, max=65535, help="Of the engine.")] = 8000

    def check(self) -> None:
        """End where one of them is taken: the search in between takes minutes."""
        from api.cli.listening import bind

        for port in (self.port, self.engine_port):
            bind("127.0.0.1", port).close()


@grouped(
    help_order="model sla workload devices trials budget plan device quantization profile_seconds "
    "seed port engine_port"
)
def up(wanted: Wanted, first: FirstTune, ports: Ports, as_json: JsonOption = False) -> None:
    """Start the control plane, tune the model for the SLA, and serve it with the answer.

    One line on stdout tells the addresses and the key when all is ready; it runs until Ctrl-C,
    which ends everything it started. The search has the machine to itself, so the engine starts
    after it. It is short (--budget): the best is measured once more on other requests, and 'tune'
    searches further. Where nothing meets the SLA, what came nearest is told and served, or --plan.
    State is kept in the data folder (GEARSHIFT_DATA_DIR), as by 'gearshift serve'.

    Example: gearshift up --model ./model --sla "p95_ttft_ms<=500,p95_tpot_ms<=50"
    """
    from api.cli.clock_bar import clock_bar  # what draws it is slow to load
    from api.clients.client import Client
    from api.demo.processes import Children, DemoError
    from tuner.search.budget import TimeBudget

    workload = wanted.check()
    budget = first.check(workload)
    check_device(first.device)
    ports.check()
    search_s = 0.0
    if first.trials:
        search_s = TimeBudget.parse(budget).clock_s(first.devices)
    countdown = Countdown(seconds=2 * START_S + search_s)
    try:
        with ExitStack() as stack:
            folder = _log_folder()
            children = stack.enter_context(Children(folder, _environment(wanted)))
            with clock_bar("up", countdown.seconds):
                countdown.say(f"control plane (log {folder / 'service.log'})")
                _, service = children.start("service", "serve", "--port", str(ports.port))
                key = stack.enter_context(_key(children, service["admin_key"]))
                stack.callback(children.end_all)  # while the key is good: the engine says goodbye
                client = stack.enter_context(Client(service["url"], key))
                found = Found()
                if first.trials:
                    found = first_tune(
                        client, wanted, first, countdown, workload=workload, budget=budget
                    )
                countdown.only_engine_left()
                countdown.say("engine")
                started = Starting(children=children, client=client, control=service["url"])
                engine = started.engine(wanted, first, ports.engine_port, found)
            _tell_how_to_confirm(engine["url"], wanted, first.seed)
            _tell(service["url"], engine, key, found.recommended, as_json=as_json)
            children.watch(LOOK_S)
    except DemoError as error:
        fail(str(error), ExitCode.FAULT)


def _log_folder() -> Path:
    from api.web.settings import ServiceSettings

    folder = ServiceSettings().data_dir / "up"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _environment(wanted: Wanted) -> dict[str, str]:
    """The service may open the model's folder, and the trace's where the workload names one."""
    from api.web.settings import ServiceSettings
    from tuner.workload.spec import WorkloadSpec

    settings = ServiceSettings()
    found = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    roots = {"GEARSHIFT_MODEL_ROOT": (settings.model_root, wanted.model)}
    if (path := WorkloadSpec.parse(wanted.workload).path) is not None:
        roots["GEARSHIFT_TRACE_ROOT"] = (settings.trace_root, Path(path))
    for name, (root, place) in roots.items():
        found[name] = ":".join([str(place.resolve().parent), *([root] if root else [])])
    return found


@contextmanager
def _key(children: Children, first_key: str | None) -> Iterator[str]:
    """An admin key: the first one, which stays, or one of this run's own, revoked at its end."""
    if first_key is not None:
        children.know("GEARSHIFT_CONTROL_KEY", first_key)
        yield first_key
        return
    made = children.run("keys", "create", "gearshift up", "--scope", "admin")
    children.know("GEARSHIFT_CONTROL_KEY", made["secret"])
    try:
        yield made["secret"]
    finally:
        children.run("keys", "revoke", made["id"])


@dataclass(frozen=True, kw_only=True)
class Starting:
    """What an engine is started with: by whom, and the control plane it joins."""

    children: Children
    client: Client
    control: str

    def engine(self, wanted: Wanted, first: FirstTune, port: int, found: Found) -> dict[str, Any]:
        """The engine that serves what was found, or the plan named; as it told when it was ready,
        and its id.

        Raises:
            DemoError: it did not start, or did not join.
        """
        from api.demo.processes import DemoError

        name = wanted.model.resolve().name
        held = () if first.quantization is None else ("--quantization", first.quantization)
        _, ready = self.children.start(
            "engine",
            *("engine", "serve", "--model", str(wanted.model), *self._words(first, found)),
            *("--port", str(port), "--name", name, "--control", self.control),
            *("--device", first.device),
            *held,
        )
        end_s = time.monotonic() + REGISTER_S
        while time.monotonic() < end_s:
            for engine in self.client.list_engines():
                if engine.name == name and engine.is_alive:
                    self._apply(engine.id, found.recommended)
                    return {**ready, "id": engine.id}
            time.sleep(LOOK_S)
        raise DemoError(f"engine {name} did not register within {REGISTER_S:.0f} s")

    def _words(self, first: FirstTune, found: Found) -> list[str]:
        """What the engine is started with."""
        from api.cli.answers import serve_defaults
        from api.documents.answer import Answer

        if found.recommended is not None:
            return ["--from", f"{self.control}/v1/recommendations/{found.recommended.id}"]
        if first.plan is not None or found.nearest is None:
            return ["--plan", first.plan or USUAL_PLAN]
        options = serve_defaults(Answer(settings=found.nearest, place=None, launch=()))
        return [
            word
            for name, value in options.items()
            for word in (f"--{name.replace('_', '-')}", value)
        ]

    def _apply(self, engine_id: str, found: RecommendationView | None) -> None:
        """Hand SLA and schedule to the controller; the settings are in force already."""
        if found is None:
            return
        changed = self.client.apply_recommendation(found.id, engine_id, reason="gearshift up")
        version = changed.policy.version
        self.client.wait_applied(engine_id, version, timeout_s=REGISTER_S)


def _tell_how_to_confirm(url: str, wanted: Wanted, seed: int) -> None:
    words = ("--url", url, "--workload", wanted.workload, "--sla", wanted.sla)
    bench = shlex.join(["gearshift", "bench", *words, "--seed", str(seed + 1)])
    log(f"up: to measure what is served on other requests: {bench}")


def _tell(
    url: str, engine: dict[str, Any], key: str, found: RecommendationView | None, *, as_json: bool
) -> None:
    from api.web.settings import ServiceSettings

    if as_json:
        print_json(
            {
                "control": url,
                "engine": engine["url"],
                "engine_id": engine["id"],
                "key": key,
                "recommendation_id": None if found is None else found.id,
            }
        )
        return
    pages = " with its pages" if ServiceSettings().has_dashboard else ""
    print_line(
        f"ready: {engine['url']} serves the model (OpenAI API); {url} is the control plane{pages}; "
        f"key {key}; Ctrl-C ends both"
    )
