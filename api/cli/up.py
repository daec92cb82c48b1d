"""``gearshift up``: control plane, a first tune and a tuned engine, in one command."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.common import fail, log, print_json, print_line
from api.cli.engine_options import (
    MOST_DEVICES,
    MOST_SEED,
    DeviceOption,
    JsonOption,
    ModelOption,
    QuantizationOption,
    check_device,
)
from api.cli.exit_codes import ExitCode
from api.cli.grouped import grouped
from api.cli.trial_bar import TrialBar

if TYPE_CHECKING:
    from api.clients.client import Client
    from api.demo.processes import Children
    from api.schemas.tuning import RecommendationView
    from engine.spec.settings import Settings
    from store.models import JobState

DEFAULT_WORKLOAD = "poisson:rate=2,input=256,output=64,seconds=30"
USUAL_PLAN = "tp=1"
REGISTER_S = 120.0
LOOK_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The model, what it must hold, and the load it is tuned under."""

    model: ModelOption
    sla: Annotated[str, typer.Option(help="SLA, as in p95_ttft_ms<=500,p95_tpot_ms<=50.")]
    workload: Annotated[str, typer.Option(help="Workload SPEC of the load to tune for.")] = (
        DEFAULT_WORKLOAD
    )

    def check(self) -> str:
        """The workload with its path made whole.

        Raises:
            CheckpointError, PolicyInputError, TunerError: a part that cannot be used.
        """
        from engine.spec.model import ModelConfig
        from policies.sla import Sla
        from tuner.workload.parse import parse_workload
        from tuner.workload.spec import WorkloadSpec

        ModelConfig.from_dir(self.model)
        Sla.parse(self.sla)
        parse_workload(self.workload, seed=0)
        spec = WorkloadSpec.parse(self.workload)
        return self.workload if spec.path is None else spec.at(spec.path.resolve())


@dataclass(frozen=True, kw_only=True)
class FirstTune:
    """How far the first search goes."""

    devices: Annotated[
        int, typer.Option(min=1, max=MOST_DEVICES, help="Most devices (ranks) a plan may use.")
    ] = 2
    trials: Annotated[
        int, typer.Option(min=0, max=1000, help="Trials; 0 serves without a search.")
    ] = 6
    profile_seconds: Annotated[
        float, typer.Option(min=1, max=86_400, help="About how long to profile this machine.")
    ] = 30.0
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of everything random.")] = 0
    device: DeviceOption = "cpu"
    quantization: QuantizationOption = None
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="PLAN",
            help="Served where nothing is recommended; by default the settings that came nearest, "
            f"without a search {USUAL_PLAN}.",
        ),
    ] = None


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
    help_order="model sla workload devices trials plan device quantization profile_seconds seed "
    "port engine_port"
)
def up(wanted: Wanted, first: FirstTune, ports: Ports, as_json: JsonOption = False) -> None:
    """Start the control plane, tune the model for the SLA, and serve it with the answer.

    One line on stdout tells the addresses and the key when all is ready; it runs until Ctrl-C,
    which ends everything it started. The search has the machine to itself, so the engine starts
    after it; where nothing meets the SLA, what came nearest is told and served, or --plan. State
    is kept in the data folder (GEARSHIFT_DATA_DIR), as by 'gearshift serve'.

    Example: gearshift up --model ./model --sla "p95_ttft_ms<=500,p95_tpot_ms<=50"
    """
    from api.clients.client import Client
    from api.demo.processes import Children, DemoError
    from engine.spec.plan import parse_plan

    workload = wanted.check()
    if first.plan is not None:
        parse_plan(first.plan)
    check_device(first.device)
    ports.check()
    try:
        with ExitStack() as stack:
            folder = _log_folder()
            children = stack.enter_context(Children(folder, _environment(wanted)))
            log(f"up: control plane (log {folder / 'service.log'})")
            _, service = children.start("service", "serve", "--port", str(ports.port))
            key = stack.enter_context(_key(children, service["admin_key"]))
            stack.callback(children.end_all)  # while the key is good: the engine says goodbye
            client = stack.enter_context(Client(service["url"], key))
            found = Found()
            if first.trials:
                found = _tune(client, wanted, workload, first)
            started = Starting(children=children, client=client, control=service["url"])
            engine = started.engine(wanted, first, ports.engine_port, found)
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
class Found:
    """What the first search ended with: a recommendation, else perhaps what came nearest."""

    recommended: RecommendationView | None = None
    nearest: Settings | None = None


def _tune(client: Client, wanted: Wanted, workload: str, first: FirstTune) -> Found:
    """The answer of a first job, told as it goes."""
    from engine.spec.settings import Settings
    from store.models import JobState

    log(f"up: searching for a plan that serves {workload} (--workload) within {wanted.sla}")
    job = client.create_tuning_job(
        {
            "model_dir": str(wanted.model.resolve()),
            "num_devices": first.devices,
            "workload": workload,
            "sla": wanted.sla,
            "trials": first.trials,
            "seed": first.seed,
            "hardware": "local",
            "quantization": first.quantization,
            "options": {"device": first.device, "profile_seconds": first.profile_seconds},
        }
    )
    with TrialBar(job.num_trials, 0) as bar:
        bar.follow(client.follow_tuning_job(job.id), begins="up: ")
    job = client.get_tuning_job(job.id)
    closest = None
    if job.state in (JobState.SUCCEEDED, JobState.INFEASIBLE):
        report = client.get_tuning_report(job.id)
        for warning in report["warnings"]:
            log(f"warning: {warning}")
        closest = (report["infeasible"] or {}).get("closest")
    if job.recommendation_id is not None:
        return Found(recommended=client.get_recommendation(job.recommendation_id))
    nearest = None if closest is None else Settings.from_json(closest["settings"])
    served = first.plan or (nearest and f"{nearest}, which came nearest,") or USUAL_PLAN
    log(f"up: {_why_none(job.state)}, so {served} is served")
    return Found(nearest=nearest)


def _why_none(state: JobState) -> str:
    """Why there is nothing to serve by."""
    if state.value == "infeasible":
        return "nothing was found that meets the SLA with enough certainty"
    return f"the search ended as {state.value}"


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
        log("up: engine")
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
