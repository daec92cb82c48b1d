"""Commands that start settings of a node on real systems."""

from __future__ import annotations

from dataclasses import replace

from engine.spec.settings import Settings
from tuner.backends import load_backend
from tuner.described.node import Node
from tuner.described.parse import has_checkpoint
from tuner.launch.command import MODEL, LaunchCommand, Room, Served, join_notes
from tuner.launch.commands import CHECKPOINTS, launch_commands
from tuner.work.models import find_checkpoint


def node_commands(
    node: Node,
    settings: Settings,
    *,
    model: str,
    longest_tokens: int = 1,
    queued_tokens: int | None = None,
) -> tuple[LaunchCommand, ...]:
    """A command or a reason for every serving system, with memory and context as simulated.

    ``model`` is as the user named it. Commands load it if it is a folder or a published name; for a
    name of the catalog, they load what its publisher offers. ``longest_tokens`` is the longest
    request, which even a cut context must hold. ``queued_tokens``: as
    :func:`~tuner.described.queue_limit.queued_tokens` computes them.
    """
    is_folder = has_checkpoint(model)
    is_loadable = is_folder or "/" in model
    # Four-bit weights are published by many, block-scaled ones under other names; none of them
    # stands for all.
    is_published = not is_loadable and node.precision not in CHECKPOINTS
    stand_in = find_checkpoint(model) if is_published else None
    memory = node.memory(settings.plan, caps=settings.caps)
    served = Served(
        precision=node.precision,
        backend=node.backend.name,
        backend_choice=node.backend.choice,
        is_async=_named_async(node),
        step_order=node.backend.step_order,
        keeps_prefixes=node.backend.prefix_cache,
        kv=node.backend.kv_cache_dtype,
        hardware=str(node.hardware),
        checkpoint=model if is_loadable else stand_in,
        folder=model if is_folder or node.precision.is_quantised else None,
        max_model_len=node.max_model_len,
        positions=node.model.max_positions,
        longest_tokens=longest_tokens,
        queued_tokens=queued_tokens,
        room=Room.of(memory, node.hardware.device.memory_bytes) if node.has_device else None,
    )
    found = launch_commands(settings, served)
    if not node.has_device:  # what was seen of one system says nothing of others
        found = tuple(command for command in found if command.system == node.backend.name)
    if is_loadable:
        return found
    return tuple(_with_model(command, model, stand_in) for command in found)


def _named_async(node: Node) -> bool | None:
    """Asynchronous scheduling, if it differs from the newest release's default."""
    known = load_backend(node.backend.name)
    is_on = node.backend.host.is_overlapped
    return None if is_on == known.host.is_overlapped else is_on


def _with_model(found: LaunchCommand, model: str, stand_in: str | None) -> LaunchCommand:
    words = (found.command or "").split()
    if MODEL in words:
        note = f"{MODEL} is a checkpoint of {model}"
    elif stand_in in words:
        note = f"{stand_in} stands for {model}: name yours, or --model ORG/NAME"
    else:
        return found
    return replace(found, note=join_notes(note, found.note))
