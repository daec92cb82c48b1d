"""What programs and notebooks import: the engine, the questions, and the control plane's clients.

Everything here is defined elsewhere and named once more; each name is loaded when it is first
used, so that ``import gearshift`` is quick and planning needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from api.clients.client import AsyncClient as AsyncClient
    from api.clients.client import Client as Client
    from api.clients.errors import ClientError as ClientError
    from engine.engine import Engine as Engine
    from engine.generation import Generation as Generation
    from engine.spec.config import EngineConfig as EngineConfig
    from engine.spec.errors import EngineError as EngineError
    from engine.spec.plan import ParallelPlan as ParallelPlan
    from engine.spec.plan import parse_plan as parse_plan
    from engine.spec.planned import planned_settings as planned_settings
    from engine.spec.request import SamplingParams as SamplingParams
    from engine.spec.settings import Caps as Caps
    from engine.spec.settings import Settings as Settings
    from engine.text.tokenizer import Tokenizer as Tokenizer
    from policies.errors import PolicyInputError as PolicyInputError
    from policies.sla import Sla as Sla
    from tuner.answers.answer import Answer as Answer
    from tuner.answers.asked import ThisMachine as ThisMachine
    from tuner.answers.carried import Carried as Carried
    from tuner.answers.carried import capacity as capacity
    from tuner.answers.planned import Planned as Planned
    from tuner.answers.planned import plan as plan
    from tuner.answers.simulated import Simulated as Simulated
    from tuner.answers.simulated import simulate as simulate
    from tuner.answers.tuned import Tuned as Tuned
    from tuner.answers.tuned import tune as tune
    from tuner.spec.errors import TunerError as TunerError
    from tuner.workload.parse import parse_workload as parse_workload
    from tuner.workload.workload import Workload as Workload

_HOMES = {
    "engine.engine": ("Engine",),
    "engine.generation": ("Generation",),
    "engine.spec.config": ("EngineConfig",),
    "engine.spec.errors": ("EngineError",),
    "engine.spec.plan": ("ParallelPlan", "parse_plan"),
    "engine.spec.planned": ("planned_settings",),
    "engine.spec.request": ("SamplingParams",),
    "engine.spec.settings": ("Caps", "Settings"),
    "engine.text.tokenizer": ("Tokenizer",),
    "policies.errors": ("PolicyInputError",),
    "policies.sla": ("Sla",),
    "tuner.answers.answer": ("Answer",),
    "tuner.answers.asked": ("ThisMachine",),
    "tuner.answers.carried": ("Carried", "capacity"),
    "tuner.answers.planned": ("Planned", "plan"),
    "tuner.answers.simulated": ("Simulated", "simulate"),
    "tuner.answers.tuned": ("Tuned", "tune"),
    "tuner.spec.errors": ("TunerError",),
    "tuner.workload.parse": ("parse_workload",),
    "tuner.workload.workload": ("Workload",),
    "api.clients.client": ("AsyncClient", "Client"),
    "api.clients.errors": ("ClientError",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"gearshift has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
