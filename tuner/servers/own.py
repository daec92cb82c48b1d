"""The command that serves an engine of this project as a process of its own."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from engine.spec.settings import Settings
from tuner.launch.command import System
from tuner.launch.gearshift import ServedHere, launch_here
from tuner.spec.errors import TunerError


@dataclass(frozen=True, kw_only=True)
class OwnCommand:
    """Serves ``here`` the way a recommendation's pasted command would: front end, HTTP and ranks on
    this machine. A :class:`tuner.servers.target.Command`."""

    here: ServedHere
    max_model_len: int | None = None

    @property
    def system(self) -> System:
        return System.GEARSHIFT

    @property
    def api_key(self) -> str | None:
        """None: it inherits no key of ours."""
        return None

    def words(self, settings: Settings, *, port: int) -> list[str]:
        """The command on the loopback interface.

        Raises:
            TunerError: the program that it begins with is not installed here.
        """
        launch = launch_here(settings, self.here, max_model_len=self.max_model_len)
        assert launch.command is not None, "an engine of ours serves whatever it is tuned for"
        name, *options = shlex.split(launch.command)
        return [_program(name), *options, "--port", str(port)]

    def why_not(self, _settings: Settings) -> str | None:
        """None: what trials run, it serves."""
        return None

    def unexpressed(self, _settings: Settings) -> tuple[str, ...]:
        """Nothing: the command is made of its own options."""
        return ()


def _program(name: str) -> str:
    """Where it is: beside this interpreter, or on the path."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else which(name)
    if found is None:
        raise TunerError(f"{name}: no such program here, so nothing can be served for a probe")
    return found
