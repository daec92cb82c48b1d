"""``gearshift engines``: engines that the control plane knows. Servers that are not ours
are observed and advised."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.common import fail, log, print_json, print_line, print_lines, print_text
from api.cli.control_plane import ControlPlane, EngineArgument, find_engine, find_engine_id
from api.cli.engine_options import is_http_url
from api.cli.grouped import grouped
from api.cli.tables import minute

if TYPE_CHECKING:
    from api.schemas.observed import AdviceView, ObservationView
    from api.schemas.serving import EngineView, ForecastView

Json = dict[str, Any]
FORMS = ("text", "command", "kubernetes", "compose")
MOST_FILE_BYTES = 2**24
SYSTEMS = ("vllm", "sglang")


@dataclass(frozen=True, kw_only=True)
class Running:
    """What a server was started with."""

    plan: Annotated[
        str, typer.Option(metavar="PLAN", help="The plan it runs, as in tp=2 or dp=2,tp=4.")
    ]
    system: Annotated[str, typer.Option(metavar="|".join(SYSTEMS), help="The serving system.")] = (
        "vllm"
    )
    max_num_seqs: Annotated[
        int | None, typer.Option(min=1, max=2**31 - 1, help="Sequences per step.")
    ] = None
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(min=1, max=2**31 - 1, help="Tokens per step.")
    ] = None
    model: Annotated[
        str | None, typer.Option(help="What launch commands name: a folder or a name.")
    ] = None
    dtype: Annotated[str, typer.Option(help="Its number format, as in bfloat16 or fp8.")] = "bf16"
    max_model_len: Annotated[
        int | None, typer.Option(min=1, max=2**31 - 1, help="Its context, where it was asked for.")
    ] = None
    max_devices: Annotated[
        int | None, typer.Option(min=1, max=1024, help="The most devices that advice may name.")
    ] = None

    def body(self, url: str, name: str, sla: str | None) -> dict[str, Any]:
        """What the control plane is told; ends on a word that is none.

        Raises:
            PlanError, PolicyInputError: a plan or an SLA that cannot be read.
        """
        from engine.spec.plan import parse_plan
        from policies.sla import Sla
        from tuner.hardware.precision import Precision

        parse_plan(self.plan)
        if sla is not None:
            Sla.parse(sla)
        if self.system not in SYSTEMS:
            fail(f"--system {self.system!r}: known are {', '.join(SYSTEMS)}")
        told = {
            "name": name,
            "system": self.system,
            "url": url,
            "plan": self.plan,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "model": self.model,
            "precision": Precision.parse(self.dtype).value,
            "max_model_len": self.max_model_len,
            "max_devices": self.max_devices,
            "sla": sla,
        }
        return {key: value for key, value in told.items() if value is not None}


@grouped(help_order="url plan system name sla")
def observe(
    url: Annotated[str, typer.Argument(metavar="URL", help="The server, as in http://host:8000.")],
    running: Running,
    plane: ControlPlane,
    name: Annotated[
        str | None, typer.Option(help="What to call it; by default its host and port.")
    ] = None,
    sla: Annotated[str | None, typer.Option(metavar="SLA", help="What it is judged by.")] = None,
) -> None:
    """Have the control plane look at a vLLM or SGLang server by its /metrics, from now on.

    Again under the same name: the server has moved, or runs other settings now.
    """
    from urllib.parse import urlsplit

    from tuner.load.urls import full_url

    address = full_url(url)
    if not is_http_url(address):
        fail(f"URL {url!r}: write it as in http://127.0.0.1:8000")
    body = running.body(address, name or urlsplit(address).netloc, sla)
    with plane.client() as client:
        engine = client.observe_engine(body)
    if plane.as_json:
        print_json(engine.to_json())
        return
    print_line(f"{engine.id}: {engine.name} is observed at {engine.public_url}")
    log(f"see it: {plane.command(f'engines show {engine.name}')}")


@grouped()
def list_engines(plane: ControlPlane) -> None:
    """List the engines that the control plane knows, ended ones too, newest first."""
    with plane.client() as client:
        found = client.list_engines()
    headings = ("id", "name", "runs", "SLA", "alive", "version")
    plane.tell_rows("engines", found, headings, _cells)


@grouped()
def show(engine: EngineArgument, plane: ControlPlane) -> None:
    """Say what an engine runs; of an observed server what is seen: load, latencies, attainment."""
    with plane.client() as client:
        found = find_engine(client, engine)
        if found.system is None:
            plane.tell(found, _lines)
        else:
            plane.tell(client.get_engine_observation(found.id), _seen_lines)


@grouped()
def forecast(engine: EngineArgument, plane: ControlPlane) -> None:
    """Say what the next minutes are expected to bring to an engine, and how good that has been."""
    with plane.client() as client:
        plane.tell(client.get_forecast(find_engine_id(client, engine)), _forecast_lines)


@grouped()
def bind(
    engine: EngineArgument,
    table: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Report of plan or tune with --capacity-table, or the table alone."
        ),
    ],
    plane: ControlPlane,
) -> None:
    """Hold an engine to a capacity table and its SLA: the slow loop and advice go by it."""
    body: Json = {"capacity_table": _read_table(table), "reason": "gearshift engines bind"}
    with plane.client() as client:
        answer = client.bind_engine(find_engine_id(client, engine), body)
    if plane.as_json:
        print_json(answer.to_json())
        return
    num_entries = len(body["capacity_table"]["entries"])
    print_line(f"{engine} is held to {answer.policy.requested['sla']}, {num_entries} entries")
    log(f"what it should run: {plane.command(f'engines advise {engine}')}")


@grouped(help_order="engine form")
def advise(
    engine: EngineArgument,
    plane: ControlPlane,
    form: Annotated[
        str, typer.Option("--format", metavar="|".join(FORMS), help="What to print.")
    ] = FORMS[0],
) -> None:
    """Say which entry of its capacity table an observed server should be on, and how to start it.

    --format kubernetes prints a Deployment alone, --format compose a Compose file.
    """
    if form not in FORMS:
        fail(f"--format {form!r}: known are {', '.join(FORMS)}")
    with plane.client() as client:
        found = client.get_engine_advice(find_engine_id(client, engine))
    if plane.as_json:
        print_json(found.to_json())
    elif form == FORMS[0]:
        print_lines(_advice_lines(found))
    elif found.launch is None:
        fail(
            f"{engine}: nobody knows its load yet, so there is nothing to start; "
            f"'{plane.command(f'engines show {engine}')}' says what is seen of it"
        )
    else:
        print_text(getattr(found.launch, form).rstrip("\n") + "\n")


@grouped()
def forget(engine: EngineArgument, plane: ControlPlane) -> None:
    """Observe a server no more, or call an engine ended that was killed; what was seen stays.

    An engine that lives says itself when it ends.
    """
    with plane.client() as client:
        found = find_engine(client, engine)
        if found.system is None and found.is_alive:
            fail(f"{engine} reports here itself: end its process, and it says so")
        client.deregister_engine(found.id)
    if plane.as_json:
        print_json({"forgotten": found.id})
    else:
        did = "has ended" if found.system is None else "is observed no more"
        print_line(f"{engine} {did}")


def _read_table(path: Path) -> Json:
    """The capacity table in a file. Ends where there is none."""
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(MOST_FILE_BYTES))
    except OSError as error:
        fail(f"{path}: {error.strerror}")
    except (ValueError, RecursionError):
        fail(f"{path}: no JSON; name a report of plan or tune with --capacity-table")
    tables: list[Json] = [place for place in _places(document) if _is_table(place)]
    if not tables:
        fail(f"{path}: has no capacity table; make it with --capacity-table")
    return tables[0]


def _places(document: Any) -> list[Any]:
    """Where a report may have its table, the report itself first."""
    if not isinstance(document, dict):
        return []
    within = document.get("recommendation")
    inner = within.get("capacity_table") if isinstance(within, dict) else None
    return [document, document.get("capacity_table"), inner]


def _is_table(place: Any) -> bool:
    return isinstance(place, dict) and isinstance(place.get("entries"), list)


def _cells(row: EngineView) -> tuple[str, ...]:
    version = str(row.applied_version)
    if row.desired_version != row.applied_version:
        version += f", asked for {row.desired_version}"
    by = "" if row.system is None else f"{row.system}: "
    alive = "yes" if row.is_alive else "no"
    return row.id, row.name, by + _runs(row), row.sla or "-", alive, version


def _runs(row: EngineView) -> str:
    from api.documents.policy import settings_in

    return str(settings_in(row.effective_policy))


def _lines(found: EngineView) -> list[str]:
    seen = (
        ""
        if found.last_heartbeat_at is None
        else f", last seen {minute(found.last_heartbeat_at)} UTC"
    )
    return [
        f"{found.id} {found.name}: {'alive' if found.is_alive else 'silent or ended'}{seen}",
        f"  {found.model_name} on {found.host}, {found.public_url or 'no address told'}",
        f"  runs {_runs(found)}",
        f"  policy version {found.applied_version}, asked for {found.desired_version}",
        f"  SLA {found.sla or 'none'}; recommendation {found.recommendation_id or 'none'}",
    ]


def _forecast_lines(found: ForecastView) -> list[str]:
    from policies.numbers import short

    rates = ", ".join(map(short, found.rates_rps))
    lines = [
        f"next {len(found.rates_rps)} x {short(found.slot_s)} s: {rates} requests/s",
        f"peak {short(found.expected_peak_rps)} requests/s; {short(found.peak_rps)} is not "
        f"exceeded with a chance of {found.chance}; "
        f"the slow loop asks for {short(found.held_peak_rps)}",
    ]
    if found.mean_input_tokens is not None and found.mean_output_tokens is not None:
        lines.append(
            f"counted as requests of {short(found.mean_input_tokens)} + "
            f"{short(found.mean_output_tokens)} tokens, those of the capacity table"
        )
    error = "" if found.peak_error is None else f", mean error of the peak {found.peak_error:.0%}"
    return [
        *lines,
        f"by {found.forecaster}, from {short(found.history_slots * found.slot_s / 60)} minutes; "
        f"{found.backtests} looks back{error}",
    ]


def _seen_lines(found: ObservationView) -> list[str]:
    from policies.numbers import short

    lines = [
        f"{found.system} at {found.url}: {found.sight} since {found.since:%Y-%m-%d %H:%M:%S} UTC"
    ]
    if found.detail:
        lines.append(f"  {found.detail}")
    if found.restarted_at is not None:
        lines.append(f"  began anew {found.restarted_at:%Y-%m-%d %H:%M:%S} UTC")
    if found.missing:
        lines.append(f"  its page does not tell: {', '.join(found.missing)}")
    if found.window_s is None:
        return [*lines, "  nothing was counted in the last seconds"]
    kv_usage = "not told" if found.kv_usage is None else f"{found.kv_usage:.0%}"
    lines += [
        f"  {short(found.arrived_rps or 0.0)} requests/s came, {found.running} run, "
        f"{found.waiting} wait; KV cache {kv_usage}",
        f"  {short(found.prompt_tokens_per_s or 0.0)} prompt and "
        f"{short(found.generation_tokens_per_s or 0.0)} output tokens/s",
    ]
    if found.prefix_hit_rate is not None:
        lines.append(f"  prefix cache: {found.prefix_hit_rate:.0%} hits")
    if (share := found.attainment) is not None:
        lines.append(
            f"  attainment {share.value:.3f}, from {share.low:.3f} to {share.high:.3f} by its "
            "buckets"
        )
    if found.judges_tpot_by_itl:
        lines.append("  TPOT is judged by gaps between tokens, which is all that it counts")
    return lines


def _advice_lines(found: AdviceView) -> list[str]:
    from policies.numbers import counted, short

    if found.entry is None or found.launch is None:
        return [f"{found.reason}: nobody knows its load yet; it stays as it is"]
    from engine.spec.settings import Settings

    devices = counted(found.num_devices or 0, "device")
    carried = f"carries {short(found.entry['low_rps'])} requests/s on {devices}"
    lines = [
        f"{found.reason}: {short(found.needed_rps or 0.0)} requests/s have to be carried",
        f"{Settings.from_json(found.entry['settings'])} {carried}",
    ]
    if found.is_there:
        lines.append("it runs these settings already")
    lines += [f"note: {text}" for text in found.left_out]
    is_by_hand = found.applied_by == "hand"
    by = "you restart it: the service cannot" if is_by_hand else f"by its {found.applied_by}"
    return [*lines, f"applied {by}" if not is_by_hand else by, "", found.launch.command]
