"""How to start a recommendation on a serving system."""

from __future__ import annotations

from pydantic import Field

from api.schemas.base import View, shown
from api.schemas.examples import launch
from tuner.launch.command import System


class ConfigFileView(View):
    """A file that the system reads."""

    name: str
    text: str
    command: str = Field(description="The command that reads it")
    is_needed: bool = Field(description="Whether `command` of the answer reads it too")


class LaunchView(View):
    """The command that starts a recommendation's settings on a serving system."""

    model_config = shown(launch.VLLM)

    system: System
    command: str
    script: str = Field(description="To paste: what to mind, the file it needs, the command")
    note: str | None = Field(description="What to mind")
    versions: str | None = Field(description="Releases that the command is written for")
    is_rehearsal: bool = Field(description="Whether it is served without the hardware or a model")
    config: ConfigFileView | None
