"""How to start an answer's settings on a serving system. Pure, no database."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tuner.launch.command import System
from tuner.spec.errors import TunerError

HEREDOC_END = "EOF"


class LaunchFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that the system reads, as :class:`tuner.launch.command.ConfigFile` writes it."""

    name: str
    text: str
    command: str
    is_needed: bool


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """A command or why there is none, as :class:`tuner.launch.command.LaunchCommand` writes it."""

    system: str
    command: str | None
    note: str | None = None
    is_rehearsal: bool = False
    versions: str | None = None
    config: LaunchFile | None = None

    @property
    def script(self) -> str:
        """What to paste into a shell: what to mind as comments, the file it reads, the command."""
        told = (self.versions, self.note)
        lines = [f"# {' '.join(text.split())}" for text in told if text]  # a name may end lines
        if self.config is not None and self.config.is_needed:
            text = self.config.text.rstrip("\n")
            lines += [f"cat > {self.config.name} <<'{HEREDOC_END}'", text, HEREDOC_END]
        return "\n".join([*lines, self.command or ""]) + "\n"


def launch_for(launches: Sequence[Launch], system: System) -> Launch:
    """The command for ``system`` among those that were written with the answer.

    Raises:
        TunerError: there is none, and why: the system cannot run the plan, or the settings were
            found for another one only.
    """
    found = next((each for each in launches if each.system == system), None)
    if found is None:
        known = ", ".join(each.system for each in launches)
        raise TunerError(
            f"there is no command for {system.value}: what was tuned on a machine's own ranks is "
            f"for {known}; tune on described hardware, as in 8xh200, for every system"
            if known
            else "it has no commands: alternatives and answers of earlier versions are without"
        )
    if found.command is None:
        raise TunerError(f"there is no command for {system.value}: {found.note}")
    return found
