"""The ranks of one replica, and what works on them: scheduler, step loop, emitter."""

from __future__ import annotations

from collections.abc import Callable

from engine.executors.protocol import ENDED, Executor, ExecutorInfo, IsEnding
from engine.modes.chooser import ModeChooser
from engine.modes.table import ModeTable
from engine.replica.emission import StepEmitter
from engine.replica.mode_timing import mode_table_for
from engine.replica.requests import AcceptedRequests
from engine.replica.step_loop import StepLoop
from engine.replica.telemetry import Telemetry
from engine.scheduler.load import LoadBook
from engine.scheduler.scheduler import Scheduler
from engine.spec.config import EngineConfig
from engine.spec.errors import RankError
from engine.spec.model import ModelConfig
from engine.spec.modes import TABLE
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings

ExecutorFactory = Callable[[IsEnding], Executor]


class ReplicaRanks:
    """Starts ranks, again whenever they fail, and sets a scheduler and a step loop to work on them.

    ``settings`` and ``mode_table`` are those that the next ranks will work by; whoever changes them
    also tells those that work now. Once ``is_ending`` says so, a start under way fails soon. Owned
    by the replica's thread.
    """

    executor: Executor
    scheduler: Scheduler
    loop: StepLoop
    emitter: StepEmitter

    def __init__(
        self,
        *,
        index: int,
        config: EngineConfig,
        model: ModelConfig,
        settings: Settings,
        make_executor: ExecutorFactory,
        is_ending: IsEnding,
        mode_table: ModeTable | None,
        accepted: AcceptedRequests,
        load: LoadBook,
        telemetry: Telemetry,
    ) -> None:
        self.settings = settings
        self.mode_table = mode_table
        self.plan: ParallelPlan = settings.plan.replica
        self._index = index
        self._config = config
        self._model = model
        self._make_executor = make_executor
        self._is_ending = is_ending
        self._accepted = accepted
        self._load = load
        self._telemetry = telemetry

    def begin(self, *, first_step_id: int) -> ExecutorInfo:
        """Start the first ranks and set them to work. Raises what :meth:`start` raises."""
        info = self.start()
        try:
            self._time_modes(info)
            self.set_to_work(info, first_step_id=first_step_id)
        except BaseException:
            self.executor.close()
            raise
        return info

    def start(self) -> ExecutorInfo:
        """Start an executor. Raises what its start raises, with nothing left running."""
        self.executor = self._make_executor(self._is_ending)
        try:
            return self.executor.start()
        except BaseException:
            self.executor.close()
            raise

    def set_to_work(self, info: ExecutorInfo, *, first_step_id: int) -> None:
        """Make what works on ranks that have started; the scheduler is empty."""
        self.scheduler = self._new_scheduler(info)
        self.scheduler.next_step_id = first_step_id
        self.loop = StepLoop(
            self.scheduler,
            self.executor,
            step_timeout_s=self._config.step_timeout_s,
            return_logits=self._config.return_logits,
        )
        self.emitter = StepEmitter(
            self._accepted.streams,
            self._telemetry,
            self.scheduler,
            replica=self._index,
            plan=self.plan,
        )

    def chooser(self) -> ModeChooser:
        """What chooses the mode of each step under the settings."""
        return ModeChooser.of(
            self.settings, table=self.mode_table, coin_seed=self._config.coin_seed
        )

    def _time_modes(self, info: ExecutorInfo) -> None:
        """Time steps in each mode, if the mode is chosen by times that are not known yet. Only
        before the first start, since requests would wait for it.
        """
        if self.mode_table is None and self.plan.shift and self.settings.pin == TABLE:
            self.mode_table = mode_table_for(
                self.executor, info, self._config, self._model, self.plan, check=self._check
            )

    def _check(self) -> None:
        if self._is_ending():
            raise RankError(ENDED)

    def _new_scheduler(self, info: ExecutorInfo) -> Scheduler:
        capacity = info.num_kv_blocks * self._config.block_size
        context = self._config.max_model_len or self._model.max_positions
        return Scheduler(
            caps=self.settings.caps,
            envelope=self._config.start_envelope,
            chooser=self.chooser(),
            num_blocks=info.num_kv_blocks,
            block_size=self._config.block_size,
            max_model_len=min(context, capacity),
            depth=info.depth,
            order=self.settings.order,
            eos_token_ids=self._model.eos_token_ids,
            keeps_prefixes=self._config.prefix_cache and self.executor.needs_inputs,
            load=self._load,
        )
