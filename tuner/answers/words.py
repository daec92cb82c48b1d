"""Questions from the words that a program gives: texts, or values that were read before."""

from __future__ import annotations

from collections.abc import Sequence

from engine.spec.modes import read_mode, read_pin
from engine.spec.plan import parse_plan
from policies.sla import Sla
from tuner.answers.asked import NamedCaps, ServedAs
from tuner.answers.cases import Question
from tuner.spec.errors import TunerError
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Workload


def read_workload(workload: str | Workload, *, seed: int) -> Workload:
    """Raises WorkloadError where a text cannot be read."""
    return parse_workload(workload, seed=seed) if isinstance(workload, str) else workload


def read_sla(sla: str | Sla) -> Sla:
    """Raises PolicyInputError where a text cannot be read."""
    return Sla.parse(sla) if isinstance(sla, str) else sla


def question_of(
    model: str,
    *,
    plan: str,
    workload: str | Workload,
    sla: str | Sla | None,
    seed: int,
    backend: str | None,
    backend_set: Sequence[str],
    dtype: str,
    mode: str,
    rungs: Sequence[str] | None,
    max_num_seqs: int | None,
    max_num_batched_tokens: int | None,
    max_step_ms: float | None,
    max_model_len: int | None,
    block_size: int,
    prefix_cache: bool | None,
) -> Question:
    """The question in words.

    Raises:
        PlanError, PolicyInputError, TunerError: a word that cannot be read.
    """
    try:
        pin = read_pin(mode)
        modes = None if rungs is None else tuple(map(read_mode, rungs))
    except ValueError as error:
        raise TunerError(f"mode: {error}") from error
    return Question(
        model=model,
        spec=parse_plan(plan),
        workload=read_workload(workload, seed=seed),
        sla=None if sla is None else read_sla(sla),
        seed=seed,
        mode=pin,
        rungs=modes,
        caps=NamedCaps(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_step_ms=max_step_ms,
        ),
        served=ServedAs(
            dtype=dtype,
            backend=backend,
            backend_set=list(backend_set),
            block_size=block_size,
            max_model_len=max_model_len,
        ),
        prefix_cache=prefix_cache,
    )
