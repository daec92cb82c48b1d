"""From settings to the words that start a server: the operator's command, and the system's flags.

The flags are those of the launch commands (``tuner.launch``), so a trial runs what the
recommendation says.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from shutil import which

from engine.spec.extensions import ExtensionPoint, load_extensions
from engine.spec.settings import Caps, Order, Settings, StepOrder
from tuner.hardware import KvFormat, Precision
from tuner.launch.command import LaunchCommand, Served, System, join_notes
from tuner.launch.sglang import sglang_options
from tuner.launch.vllm import vllm_options, words_of
from tuner.launch.why_not import rungs_note, why_not, why_not_caps
from tuner.spec.errors import TunerError

# Long enough to read a large model from disk and to compile for it.
DEFAULT_START_TIMEOUT_S = 900.0
# How each system is started unless somebody says otherwise; the model and flags follow.
COMMANDS = {
    System.VLLM: "vllm serve",
    System.SGLANG: "python -m sglang.launch_server",
}
# Commands whose first word after these is the model.
TAKES_MODEL = "serve"
MODEL_FLAGS = {System.VLLM: "--model", System.SGLANG: "--model-path"}
# Caps of vLLM's API server on CPU, per rank; on devices they are in its profile.
CPU_CAPS = Caps(max_num_seqs=128, max_num_batched_tokens=2048)
# How a server is given the key that it asks of its clients: trials need it, too. As a flag it would
# stand in reports, and in the list of processes.
KEY_FLAG = "--api-key"
KEY_VARIABLES = {System.VLLM: "VLLM_API_KEY"}
# Flags that an operator's own command must leave to us, because trials differ in them.
OURS = (
    "--port", "--tensor-parallel-size", "-tp", "--tp-size", "--pipeline-parallel-size", "-pp",
    "--pp-size", "--data-parallel-size", "-dp", "--dp-size", "--max-num-seqs",
    "--max-num-batched-tokens", "--max-running-requests", "--chunked-prefill-size",
)  # fmt: skip


def read_system(word: str) -> System:
    """The serving system named, one that trials can start.

    Raises:
        TunerError: another word, with the known ones.
    """
    try:
        system = System(word)
    except ValueError:
        system = System.GEARSHIFT
    if system not in COMMANDS:
        brought = load_extensions(ExtensionPoint.TUNING_TARGETS, TunerError)
        known = ", ".join([*COMMANDS, *brought])
        raise TunerError(f"engine {word!r}: no server that a trial can start; known: {known}")
    return system


@dataclass(frozen=True, kw_only=True)
class ServerCommand:
    """How one system serves one model. ``prefix`` None: its usual command.

    Raises:
        TunerError: a prefix that cannot be split into words, or that has a flag of ours.
    """

    system: System
    model: str
    precision: Precision
    prefix: str | None = None
    max_model_len: int | None = None
    kv: KvFormat = KvFormat.AUTO

    def __post_init__(self) -> None:
        for word in self._prefix_words:
            if (name := word.partition("=")[0]) in OURS:
                raise TunerError(
                    f"--engine-command has {name}, which trials choose; leave it out there"
                )
            if name == KEY_FLAG:
                variable = KEY_VARIABLES.get(self.system)
                way_out = "leave it out" if variable is None else f"give the key by {variable}"
                raise TunerError(
                    f"--engine-command has {name}, which reports would show; {way_out}"
                )

    @property
    def api_key(self) -> str | None:
        """The key that the server will ask for; None: it takes what comes."""
        variable = KEY_VARIABLES.get(self.system)
        return None if variable is None else os.environ.get(variable) or None

    @property
    def _prefix_words(self) -> list[str]:
        text = COMMANDS[self.system] if self.prefix is None else self.prefix
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise TunerError(f"--engine-command {text!r}: {error}") from error
        if not words:
            raise TunerError("--engine-command is empty; leave it out for the usual one")
        return words

    def require_program(self) -> None:
        """Raises TunerError where there is nothing to start: every trial would fail."""
        program = self._prefix_words[0]
        if which(program) is None:
            raise TunerError(
                f"{program}: no such program here; name what starts {self.system.value} with "
                f"--engine-command, as in '/opt/{self.system.value}/bin/{COMMANDS[self.system]}'"
            )

    def words(self, settings: Settings, *, port: int) -> list[str]:
        """The command that serves ``settings`` on ``port``."""
        served = Served(
            precision=self.precision,
            # As by its default: each trial has prompts of its own, so none finds another's.
            keeps_prefixes=True,
            step_order=StepOrder.PREFILL_FIRST if self.system is System.SGLANG else StepOrder.MIXED,
            checkpoint=self.model,
            max_model_len=self.max_model_len,
            kv=self.kv,
            port=port,
        )
        options = (
            vllm_options(settings, served)
            if self.system is System.VLLM
            else sglang_options(settings, served)
        )
        options.pop(MODEL_FLAGS[self.system], None)
        prefix = self._prefix_words
        if TAKES_MODEL in prefix:
            at = prefix.index(TAKES_MODEL) + 1
            start = [*prefix[:at], self.model, *prefix[at:]]
        else:
            start = [*prefix, MODEL_FLAGS[self.system], self.model]
        return [*start, *words_of(options)]

    def launch(self, settings: Settings, *, port: int) -> LaunchCommand:
        """The same for whoever pastes it."""
        return LaunchCommand(
            system=self.system,
            command=shlex.join(self.words(settings, port=port)),
            note=join_notes(*self.unexpressed(settings)),
        )

    def why_not(self, settings: Settings) -> str | None:
        """Why the system cannot run the settings; None when it can."""
        name = self.system.value
        return why_not(name, settings.plan) or why_not_caps(name, settings.caps)

    def unexpressed(self, settings: Settings) -> tuple[str, ...]:
        """The settings that its flags have no words for, and which therefore do not happen."""
        return unexpressed(self.system, settings)


def unexpressed(system: str, settings: Settings) -> tuple[str, ...]:
    """The settings that the flags of ``system`` have no words for."""
    caps, found = settings.caps, []
    if caps.max_step_ms is not None:
        found.append(f"{system} has no flag for max_step_ms={caps.max_step_ms:g}")
    if caps.max_queue is not None:
        found.append(f"{system} has no flag for max_queue={caps.max_queue}")
    if settings.order is not Order.FCFS:
        found.append(f"{system}: order {settings.order} was left out")
    if settings.plan.shift and (rungs := rungs_note(system, settings)):
        found.append(rungs)
    return tuple(found)


def cpu_caps(world_size: int) -> Caps:
    """vLLM's default caps on CPU (``EngineArgs.get_batch_defaults``): they grow with the ranks."""
    return Caps(
        max_num_seqs=CPU_CAPS.max_num_seqs * world_size,
        max_num_batched_tokens=CPU_CAPS.max_num_batched_tokens * world_size,
    )
