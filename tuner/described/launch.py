"""Commands that start settings of a node on real systems."""

from __future__ import annotations

from dataclasses import replace

from engine.spec.settings import Settings
from tuner.described.node import Node
from tuner.described.parse import has_checkpoint
from tuner.launch.command import MODEL, LaunchCommand, Room, Served, join_notes
from tuner.launch.commands import launch_commands


def node_commands(
    node: Node,
    settings: Settings,
    *,
    model: str,
    longest_tokens: int = 1,
    queued_tokens: int | None = None,
) -> tuple[LaunchCommand, ...]:
    """A command or a reason for every serving system, with memory and context as simulated.

    ``model``: as the user named it; commands load it where it is a folder or a published name.
    ``longest_tokens``: of one request, which a context that is cut still holds.
    ``queued_tokens``: as :func:`~tuner.described.queue_limit.queued_tokens` computes them.
    """
    is_folder = has_checkpoint(model)
    is_loadable = is_folder or "/" in model
    memory = node.memory(settings.plan, caps=settings.caps)
    served = Served(
        precision=node.precision,
        backend=node.backend.name,
        hardware=str(node.hardware),
        checkpoint=model if is_loadable else None,
        folder=model if is_folder or node.precision.is_quantised else None,
        max_model_len=node.max_model_len,
        positions=node.model.max_positions,
        longest_tokens=longest_tokens,
        queued_tokens=queued_tokens,
        room=Room.of(memory, node.hardware.device.memory_bytes),
    )
    found = launch_commands(settings, served)
    if is_loadable:
        return found
    return tuple(_with_model(command, model) for command in found)


def _with_model(found: LaunchCommand, model: str) -> LaunchCommand:
    if found.command is None or MODEL not in found.command.split():
        return found
    return replace(found, note=join_notes(f"{MODEL} is a checkpoint of {model}", found.note))
