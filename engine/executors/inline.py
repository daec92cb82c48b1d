"""The executor of one rank in the caller's own process."""

from __future__ import annotations

from collections import deque

from engine.config import EngineConfig, ModelConfig, num_kv_blocks
from engine.errors import EngineError, PlanError, RankError
from engine.executors.protocol import ExecutorInfo
from engine.parallel.mesh import solo_groups
from engine.plan import ParallelPlan
from engine.runner import ModelRunner
from engine.steps import StepPlan, StepResult


class InlineExecutor:
    """Runs each step when it is collected; see ``engine.executors.protocol.Executor``.

    Raises:
        PlanError: the plan has more than one rank.
    """

    needs_inputs = True

    def __init__(self, config: EngineConfig, model: ModelConfig, plan: ParallelPlan) -> None:
        if plan.replica_size != 1:
            raise PlanError(
                f"plan {plan} needs {plan.replica_size} ranks per replica; the inline executor "
                "runs one (executor=process runs any number)"
            )
        self._config = config
        self._model = model
        self._plan = plan.replica
        self._waiting: deque[StepPlan] = deque()
        self._runner: ModelRunner | None = None

    def start(self) -> ExecutorInfo:
        config = self._config
        blocks = num_kv_blocks(config, self._model, self._plan)
        self._runner = ModelRunner(
            model_dir=config.model_dir,
            plan=self._plan,
            rank=0,
            dtype=config.dtype,
            device=config.device,
            block_size=config.block_size,
            num_kv_blocks=blocks,
            groups=solo_groups(),
        )
        return ExecutorInfo(
            num_kv_blocks=blocks,
            weight_bytes=(self._runner.weight_bytes,),
            kv_bytes=(self._runner.kv_bytes,),
            depth=1,
        )

    def submit(self, step: StepPlan) -> None:
        if self._runner is None:
            raise RankError(f"step {step.step_id}: the executor is not running; start it first")
        self._waiting.append(step)

    def collect(self) -> StepResult:
        if self._runner is None or not self._waiting:
            raise RankError("no step is in flight; submit one before collecting")
        step = self._waiting.popleft()
        try:
            result = self._runner.execute(step)
        except EngineError:
            raise
        except Exception as error:
            raise RankError(f"step {step.step_id} failed: {error!r}") from error
        assert result is not None, "a world of one rank is its own last stage"
        return result

    def close(self) -> None:
        self._runner = None
        self._waiting.clear()
