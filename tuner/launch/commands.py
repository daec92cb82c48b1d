"""What an operator pastes to start the settings elsewhere: one command per serving system.

A plan that a system cannot run gets the reason instead of a command that would do something else.
"""

from __future__ import annotations

from dataclasses import replace

from engine.spec.settings import Settings
from tuner.hardware import Precision
from tuner.launch.command import Exporter, LaunchCommand, Served, System, join_notes
from tuner.launch.gearshift import GearshiftExporter
from tuner.launch.sglang import SglangExporter
from tuner.launch.trtllm import TrtllmExporter
from tuner.launch.vllm import ArcticExporter, VllmExporter
from tuner.launch.why_not import why_not, why_not_caps

EXPORTERS: tuple[Exporter, ...] = (
    GearshiftExporter(),
    VllmExporter(),
    ArcticExporter(),
    SglangExporter(),
    TrtllmExporter(),
)
# Formats that no system quantises to as it starts.
CHECKPOINTS = {
    Precision.INT4: "an AWQ or GPTQ checkpoint",
    Precision.FP8_BLOCK: "an fp8 checkpoint with a scale per block of 128x128 weights",
}


def launch_commands(settings: Settings, served: Served) -> tuple[LaunchCommand, ...]:
    """A command or a reason for every system: that of the simulated backend first, rehearsals
    last."""
    found = [
        _with_origin(_with_checkpoint(_export(exporter, settings, served), served), served.backend)
        for exporter in EXPORTERS
    ]
    return tuple(
        sorted(found, key=lambda each: (each.is_rehearsal, each.system.value != served.backend))
    )


def _export(exporter: Exporter, settings: Settings, served: Served) -> LaunchCommand:
    name = exporter.system.value
    reason = why_not(name, settings.plan) or why_not_caps(name, settings.caps)
    if reason is not None:
        return LaunchCommand(system=exporter.system, note=reason)
    return exporter.export(settings, served)


def _with_checkpoint(found: LaunchCommand, served: Served) -> LaunchCommand:
    """Weights that no system quantises at its start must have been quantised before."""
    kind = CHECKPOINTS.get(served.precision)
    if found.command is None or kind is None or found.system is System.GEARSHIFT:
        return found
    return replace(found, note=join_notes(f"{served.model} is {kind}", found.note))


def _with_origin(found: LaunchCommand, backend: str) -> LaunchCommand:
    """If the numbers are those of another system, the command says whose they are."""
    system = found.system.value
    if found.command is None or system == backend:
        return found
    own = f"simulate with --backend {system} to see its own"
    return replace(found, note=join_notes(found.note, f"numbers above are of {backend}", own))
