"""Engines that are not ours: observed by their address, and what was seen of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from functools import reduce
from urllib.parse import urlsplit

from api.documents.control_state import observe as observe_beats
from api.documents.policy import envelope_in
from api.documents.recommendation import within_envelope
from api.documents.server_knobs import ENVELOPE, check_settings, expressible, knobs, left_out
from api.documents.servers import Condition, Restarts, window_in
from api.schemas.observed import (
    BindRequest,
    ObservationView,
    ObserveRequest,
    RestartsView,
    ShareView,
)
from api.schemas.serving import ChangeSet
from api.services import identity, policies
from api.services.audit import record
from api.services.in_force import adopt
from api.services.policies import Authorship
from api.web.addresses import why_forbidden
from api.web.auth import Caller
from api.web.errors import ApiError, FieldError
from api.web.settings import ServiceSettings
from engine.spec.inventory import Inventory, RankKind
from engine.spec.plan import parse_plan
from engine.spec.settings import Caps, Settings
from policies.capacity_table import CapacityTable
from policies.decision import LoadWindow
from policies.schedule import Schedule
from policies.server_window import ServerWindow, attainment_of
from policies.sla import Sla
from store import UnitOfWork
from store.models import EngineRow, Heartbeat, ServerRow, Sight
from store.models.base import Json, utc_now
from tuner.backends import load_backend


def observe(
    uow: UnitOfWork, body: ObserveRequest, settings: ServiceSettings, *, caller: Caller
) -> EngineRow:
    """Look at a server from now on, or say anew where it is and what it runs.

    Raises:
        ApiError: 409, the name is that of an engine that reports itself.
        ApiError: 422, an address that the service must not call.
        PolicyError: settings that the system cannot run.
        PolicyInputError: an SLA that cannot be read.
    """
    in_force = _settings_of(body)
    check_settings(body.system, in_force)
    _check_address(body.url, settings)
    sla = None if body.sla is None else str(Sla.parse(body.sla))
    row = uow.engines.find_by_name(body.name)
    is_new = row is None
    if row is None:
        row = EngineRow(name=body.name)
    elif row.system is None:
        raise ApiError(
            409,
            "name_in_use",
            f"name {body.name!r} is that of engine {row.id}, which reports itself; choose another",
        )
    url = body.url.rstrip("/")
    row.system, row.model_name, row.public_url = body.system, body.model[:200], url
    row.host = (urlsplit(url).hostname or "")[:200]
    row.model, row.envelope = {}, asdict(ENVELOPE)
    row.capabilities = knobs(in_force, body.max_devices)
    row.inventory = _inventory(body)
    if is_new:
        row.effective_policy = in_force.to_json()
        identity.issue(row)  # and told to nobody: no heartbeat may be sent for it
        uow.engines.add(row)
    if is_new or Settings.from_json(row.effective_policy) != in_force:
        adopt(uow, row, in_force, caller, reason="observed")
    if sla is not None:
        _hold_to(uow, row, sla, caller)
    _keep_server(uow, row, body, url)
    record(uow, caller, "engine.observe", f"engines/{row.id}", reason=f"{body.system} at {url}")
    return row


def bind(uow: UnitOfWork, engine_id: str, body: BindRequest, *, caller: Caller) -> ChangeSet:
    """Hold an engine to a capacity table from now on; its settings stay.

    Raises:
        NotFoundError: no such engine.
        PolicyInputError: a table that cannot be read.
    """
    engine = uow.engines.get(engine_id, for_update=True)
    table = CapacityTable.from_json(body.capacity_table)
    before = policies.current_document(uow, engine)
    control = {
        "recommendation_id": None,
        "schedule": None,
        "capacity_table": within_envelope(
            table.to_json(), envelope_in(engine.envelope), "entries", "others"
        ),
    }
    by = Authorship(caller=caller, origin="operator", reason=body.reason)
    after = replace(before, sla=str(table.sla), provenance={"capacity_table": "bound"})
    return policies.write(uow, engine, before, after, by, control=control)


def settings_for(
    uow: UnitOfWork, engine: EngineRow, in_force: Settings, wanted: Settings
) -> tuple[Settings, list[str]]:
    """What of ``wanted`` an engine can be asked to run, and what of it is left out, in words."""
    if engine.system is None:
        return wanted, []
    server = uow.servers.find(engine.id)
    if server is None or server.restart is None:
        why = (
            f"the service cannot restart {engine.name}: its settings stay, and "
            f"/v1/engines/{engine.id}/advice tells which it should have"
        )
        return in_force, [why]
    return expressible(wanted), list(left_out(engine.system, wanted))


def view(uow: UnitOfWork, engine_id: str, settings: ServiceSettings) -> ObservationView:
    """What is seen of an observed engine.

    Raises:
        NotFoundError: no such engine, or it reports itself.
    """
    engine, row = uow.engines.get(engine_id), uow.servers.get(engine_id)
    now = utc_now()
    since = now - timedelta(seconds=settings.control_window_s)
    beats = uow.engines.list_heartbeats(engine_id, since=since)
    sla = Sla.parse(engine.sla) if engine.sla else None
    seen = observe_beats(beats, sla, now=now)
    window = join_beats(beats)
    told = None if window is None or sla is None else attainment_of(sla, window)
    condition = Condition.from_json(row.condition)
    return ObservationView(
        engine_id=engine.id,
        system=str(engine.system),
        url=row.url,
        sight=condition.sight,
        since=_at(condition.since_s),
        detail=condition.detail,
        restarted_at=None if condition.restarted_s is None else _at(condition.restarted_s),
        missing=list(condition.missing),
        attainment=None if told is None else ShareView.model_validate(told),
        is_sla_met=None if seen is None else seen.load.is_sla_met,
        metrics={} if seen is None else seen.metrics,
        load_band=None if seen is None else _band(engine, seen.load),
        restarts=_restarts(row),
        **_numbers(window, beats),
    )


def join_beats(beats: Sequence[Heartbeat]) -> ServerWindow | None:
    """What a server counted in all of these windows; None where there is none."""
    windows = [found for beat in beats if (found := window_in(beat.stats)) is not None]
    return reduce(ServerWindow.plus, windows) if windows else None


def _settings_of(body: ObserveRequest) -> Settings:
    """What the server runs; caps that were not named are those that its system has by default."""
    spec = parse_plan(body.plan)
    usual = load_backend(body.system).default_caps
    caps = Caps(
        max_num_seqs=body.max_num_seqs or usual.max_num_seqs,
        max_num_batched_tokens=body.max_num_batched_tokens or usual.max_num_batched_tokens,
    )
    return Settings(plan=spec.plan, caps=caps)


def _check_address(url: str, settings: ServiceSettings) -> None:
    """Refuse an address in numbers that must not be called; a name is looked up at each call."""
    host = urlsplit(url).hostname or ""
    try:
        why = why_forbidden(host, settings.networks)
    except ValueError:
        return
    if why is not None:
        raise ApiError(
            422,
            "forbidden_address",
            f"{url} must not be called",
            errors=[FieldError(pointer="/url", detail=why)],
        )


def _inventory(body: ObserveRequest) -> Json | None:
    if body.max_devices is None:
        return None
    return Inventory(kind=RankKind.CUDA, max_ranks=body.max_devices).to_json()


def _hold_to(uow: UnitOfWork, row: EngineRow, sla: str, caller: Caller) -> None:
    before = policies.current_document(uow, row)
    by = Authorship(caller=caller, origin="operator", reason="observed")
    policies.write(uow, row, before, replace(before, sla=sla), by)


def _keep_server(uow: UnitOfWork, row: EngineRow, body: ObserveRequest, url: str) -> None:
    """A server at another address, or of another system, is looked at anew."""
    server = uow.servers.find(row.id, for_update=True)
    is_new = server is None
    if server is None:
        server = ServerRow(engine_id=row.id, url="")
    if server.url != url:
        server.url, server.page, server.restart = url, None, None
        server.condition = Condition(sight=Sight.NEW, since_s=utc_now().timestamp()).to_json()
    server.model, server.precision = body.model, body.precision.value
    server.max_model_len = body.max_model_len
    if is_new:
        uow.servers.add(server)


def _numbers(window: ServerWindow | None, beats: Sequence[Heartbeat]) -> Json:
    """What the last windows hold; all of it unknown where there are none."""
    if window is None:
        names = (
            "window_s", "arrived_rps", "finished_rps", "running", "waiting", "kv_usage",
            "prompt_tokens_per_s", "generation_tokens_per_s", "prefix_hit_rate",
            "mean_input_tokens", "mean_output_tokens",
        )  # fmt: skip
        return {**dict.fromkeys(names), "judges_tpot_by_itl": False}
    seconds, stats = window.window_s, beats[-1].stats
    lengths = window.mean_lengths or (None, None)
    hit_rate = stats.get("prefix_hit_rate")
    if window.prefix_queries:
        hit_rate = window.prefix_hits / window.prefix_queries
    return {
        "window_s": seconds,
        "arrived_rps": window.arrived / seconds,
        "finished_rps": window.finished / seconds,
        "running": stats["running"],
        "waiting": stats["waiting"],
        "kv_usage": stats["kv_usage"],
        "prompt_tokens_per_s": window.input_tokens / seconds,
        "generation_tokens_per_s": window.output_tokens / seconds,
        "prefix_hit_rate": hit_rate,
        "mean_input_tokens": lengths[0],
        "mean_output_tokens": lengths[1],
        "judges_tpot_by_itl": window.judges_tpot_by_itl,
    }


def _band(engine: EngineRow, load: LoadWindow) -> int | None:
    """The band of the schedule that the load belongs to; None: there is none, or no request."""
    inputs, outputs = load.mean_input_tokens, load.mean_output_tokens
    if engine.schedule is None or not inputs or not outputs:
        return None
    return Schedule.from_json(engine.schedule).find_band(load.rate_rps, inputs, outputs)


def _restarts(row: ServerRow) -> RestartsView | None:
    if row.restart is None:
        return None
    found = Restarts.from_json(row.restart)
    return RestartsView(
        by=found.by,
        failures=found.failures,
        retry_at=None if found.retry_at_s is None else _at(found.retry_at_s),
        message=found.message,
        version=found.version,
    )


def _at(unix_s: float) -> datetime:
    return datetime.fromtimestamp(unix_s, UTC)
