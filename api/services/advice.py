"""What an observed engine should run: the entry of its capacity table, and how to start it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from api.documents.control_state import capacity_from_json, load_slots, observe
from api.documents.policy import settings_in
from api.documents.server_knobs import expressible, left_out, table_for
from api.documents.servers import Restarts
from api.schemas.observed import AdviceView, CommandView
from api.services import policies
from api.services.forecasts import CHANCE, HORIZON_SLOTS, choose_known, history_of
from api.web.errors import ApiError
from api.web.settings import ServiceSettings
from engine.spec.settings import Settings
from policies.advice import Advice, advise
from policies.capacity_table import CapacityTable
from policies.forecast import forecast
from policies.load_history import SLOT_S, rate_of
from store import UnitOfWork
from store.models import EngineRow, ServerRow
from store.models.base import utc_now
from tuner.hardware.precision import Precision
from tuner.launch.command import System
from tuner.launch.manifests import Container, compose, kubernetes
from tuner.servers.command import COMMANDS, ServerCommand

DEFAULT_PORTS = {"http": 80, "https": 443}
# SGLang shows its metrics, and listens beyond its own machine, only where it is told to.
PREFIXES = {System.SGLANG: f"{COMMANDS[System.SGLANG]} --enable-metrics --host 0.0.0.0"}
BY_HAND = "hand"


def tell(uow: UnitOfWork, engine_id: str, settings: ServiceSettings) -> AdviceView:
    """Where the engine should be, from what comes and what is forecast.

    Raises:
        NotFoundError: no such engine, or it reports itself.
        ApiError: 409, it is held to no table, or to none that its system can run.
    """
    engine, server = uow.engines.get(engine_id), uow.servers.get(engine_id)
    table, whole = _tables(engine)
    observed_rps = _observed_rps(uow, engine, table, settings)
    peak_rps = _peak_rps(uow, engine, table)
    in_force = settings_in(engine.effective_policy)
    found = advise(
        table,
        in_force.plan,
        [rate for rate in (observed_rps, peak_rps) if rate is not None],
        most_devices=_most_devices(uow, engine),
        correction=capacity_from_json(engine.capacity_memory).correction,
    )
    entry = found.entry
    return AdviceView(
        engine_id=engine.id,
        system=str(engine.system),
        reason=found.reason,
        observed_rps=observed_rps,
        peak_rps=peak_rps,
        needed_rps=found.needed_rps,
        current=None if found.current is None else found.current.to_json(),
        entry=None if entry is None else entry.to_json(),
        is_there=entry is not None and entry.settings == in_force,
        num_devices=None if entry is None else entry.num_devices,
        left_out=[] if entry is None else _left_out(engine, whole, found),
        launch=None if entry is None else launch_of(engine, server, entry.settings),
        applied_by=BY_HAND if server.restart is None else Restarts.from_json(server.restart).by,
    )


def command_of(engine: EngineRow, server: ServerRow, prefix: str | None = None) -> ServerCommand:
    """How the engine's server is started; ``prefix`` None: as its system usually is."""
    system = System(str(engine.system))
    return ServerCommand(
        system=system,
        model=server.model,
        precision=Precision(server.precision),
        prefix=prefix or PREFIXES.get(system),
        max_model_len=server.max_model_len,
    )


def port_of(url: str) -> int:
    """Where the server listens."""
    parts = urlsplit(url)
    return parts.port or DEFAULT_PORTS[parts.scheme]


def launch_of(engine: EngineRow, server: ServerRow, settings: Settings) -> CommandView:
    """The settings as a command, a Deployment and a Compose file."""
    command, port = command_of(engine, server), port_of(server.url)
    launch = command.launch(settings, port=port)
    container = Container(
        name=engine.name,
        system=command.system,
        words=tuple(command.words(settings, port=port)),
        num_devices=settings.plan.world_size,
        port=port,
    )
    return CommandView(
        command=str(launch.command),
        note=launch.note,
        kubernetes=kubernetes(container),
        compose=compose(container),
    )


def _tables(engine: EngineRow) -> tuple[CapacityTable, CapacityTable]:
    """The part of the engine's table that its system can run, and the whole."""
    if engine.capacity_table is None:
        raise ApiError(
            409,
            "no_table",
            "the engine is held to no capacity table: apply a recommendation that has one, or "
            f"bind one (gearshift engines bind, POST /v1/engines/{engine.id}:bind)",
        )
    whole = CapacityTable.from_json(engine.capacity_table)
    table = table_for(str(engine.system), whole)
    if table is None:
        raise ApiError(409, "no_entry", f"{engine.system} can run no entry of the capacity table")
    return table, whole


def _observed_rps(
    uow: UnitOfWork, engine: EngineRow, table: CapacityTable, settings: ServiceSettings
) -> float | None:
    now = utc_now()
    since = now - timedelta(seconds=settings.control_window_s)
    seen = observe(uow.engines.list_heartbeats(engine.id, since=since), None, now=now)
    if seen is None:
        return None
    rate, load = seen.load.rate_rps, seen.load
    if load.mean_input_tokens is None or load.mean_output_tokens is None:
        return rate
    return rate_of(rate * load.mean_input_tokens, rate * load.mean_output_tokens, table.mix)


def _peak_rps(uow: UnitOfWork, engine: EngineRow, table: CapacityTable) -> float | None:
    """Of the next minutes; None where nothing is kept of its load."""
    now_s = time.time()
    since = datetime.fromtimestamp(now_s // SLOT_S * SLOT_S, UTC)
    under_way = load_slots(uow.engines.list_heartbeats(engine.id, since=since)).values()
    history = history_of(uow, engine, now_s=now_s, mix=table.mix, under_way=tuple(under_way))
    found = forecast(history, HORIZON_SLOTS, chosen=choose_known(uow, engine, history))
    return None if found is None else found.peak_rps(CHANCE)


def _most_devices(uow: UnitOfWork, engine: EngineRow) -> int:
    has = policies.inventory_of(engine).max_ranks
    most = policies.current(uow, engine).document["guards"]["max_gpus"]
    return has if most is None else min(int(most), has)


def _left_out(engine: EngineRow, whole: CapacityTable, found: Advice) -> list[str]:
    """Of the settings as the table has them: the entry itself holds only what can be told."""
    told = found.entry and found.entry.settings
    named = next((e.settings for e in whole.entries if expressible(e.settings) == told), None)
    return [] if named is None else list(left_out(str(engine.system), named))
