"""An engine of this project."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from engine.spec.modes import AUTO
from engine.spec.quantisation import WeightFormat
from engine.spec.settings import Order, Settings
from tuner.launch.command import MODEL, LaunchCommand, Served, System, join_notes


class GearshiftExporter:
    system = System.GEARSHIFT
    flags: Mapping[str, str] = {}

    def export(self, settings: Settings, served: Served) -> LaunchCommand:
        precision = served.precision
        words = [*_engine_serve(served.folder or MODEL, settings), *_context(served.context)]
        if not precision.is_quantised:
            words += ["--dtype", precision.dtype.value, "--device", "cuda"]
            return LaunchCommand(
                system=self.system, command=shlex.join(words), note=served.context_note
            )
        if served.hardware is None:
            note = f"its ranks do not compute in {precision}"
            return LaunchCommand(system=self.system, note=note)
        words += ["--dtype", precision.value, "--paced", served.hardware]
        if served.backend != System.GEARSHIFT:
            words += ["--backend", served.backend_choice or served.backend]
        note = (
            f"paced in real time, without ranks: they do not compute in {precision}; the model is "
            "a folder with a tokenizer, as gearshift model create writes one"
        )
        return LaunchCommand(
            system=self.system,
            command=shlex.join(words),
            note=join_notes(served.context_note, note),
            is_rehearsal=True,
        )


@dataclass(frozen=True, kw_only=True)
class ServedHere:
    """An engine of this project on this machine's own ranks, as a tuning job runs its trials."""

    model: str
    dtype: str
    device: str
    kv_cache_mib: int
    block_size: int
    quantization: WeightFormat | None = None
    link: str | None = None


def launch_here(
    settings: Settings, here: ServedHere, *, max_model_len: int | None = None
) -> LaunchCommand:
    """The command that serves with ``settings`` on this machine."""
    words = [*_engine_serve(here.model, settings), *_context(max_model_len)]
    words += ["--dtype", here.dtype, "--device", here.device]
    words += ["--kv-cache-mib", str(here.kv_cache_mib), "--block-size", str(here.block_size)]
    if here.quantization is not None:
        words += ["--quantization", here.quantization.value]
    if here.link is not None:
        words += ["--link", here.link]
    return LaunchCommand(system=System.GEARSHIFT, command=shlex.join(words))


def _engine_serve(model: str, settings: Settings) -> list[str]:
    """Model, plan with its thresholds, caps, and what else decides the modes of steps."""
    caps = settings.caps
    words = ["gearshift", "engine", "serve", "--model", model, "--plan", settings.plan_text]
    words += ["--max-num-seqs", str(caps.max_num_seqs)]
    words += ["--max-num-batched-tokens", str(caps.max_num_batched_tokens)]
    if settings.plan.shift and settings.rungs is not None:
        words += ["--rungs", ",".join(settings.rungs)]
    if settings.plan.shift and settings.pin != AUTO:
        words += ["--mode", settings.pin]
    if caps.max_step_ms is not None:
        words += ["--max-step-ms", f"{caps.max_step_ms:g}"]
    if settings.order is not Order.FCFS:
        words += ["--scheduling-policy", settings.order.value]
    return words


def _context(max_model_len: int | None) -> list[str]:
    return [] if max_model_len is None else ["--max-model-len", str(max_model_len)]
