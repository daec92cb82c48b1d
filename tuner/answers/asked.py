"""What a question says of settings and of where they run, beside the plan and the load. Quick to
import."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.spec.settings import Caps
    from tuner.described.node import Node

# Hardware whose name ends like this is the file of a server profile.
PROFILE_SUFFIX = ".json"


@dataclass(frozen=True, kw_only=True)
class NamedCaps:
    """How much a step may hold and how long it may take; None: as by the serving system's
    default."""

    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_step_ms: float | None = None

    def over(self, default: Caps) -> Caps:
        """The caps named, and ``default``'s where none is."""
        return replace(
            default,
            max_num_seqs=self.max_num_seqs or default.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens or default.max_num_batched_tokens,
            max_step_ms=self.max_step_ms,
        )


@dataclass(frozen=True, kw_only=True)
class ServedBy:
    """How a model is served. ``dtype`` ``auto``: as the model says. ``backend`` and its settings,
    as in ``async_scheduling=off``, are of described hardware; None: the usual one."""

    dtype: str = "auto"
    backend: str | None = None
    backend_set: list[str] | None = None

    @property
    def chosen_backend(self) -> str | None:
        """The serving system with the named settings; None if neither is named."""
        if not self.backend_set:
            return self.backend
        from tuner.described.parse import backend_of

        return backend_of(self.backend, settings=self.backend_set)


@dataclass(frozen=True, kw_only=True)
class ServedAs(ServedBy):
    """The options of a described node, beside its hardware and its model. ``max_model_len`` None:
    the model's context."""

    block_size: int = 16
    max_model_len: int | None = None

    def node(self, model: str, hardware: str) -> Node:
        """``model`` on ``hardware``, as in ``8xh200``, or as the file of a server profile knows it.

        Raises:
            TunerError: an unknown name, or a profile that is not of this model.
        """
        from tuner.described.parse import describe_node

        if hardware.endswith(PROFILE_SUFFIX):
            return self._profiled(model, Path(hardware))
        return describe_node(
            model=model,
            hardware=hardware,
            dtype=self.dtype,
            backend=self.chosen_backend,
            block_size=self.block_size,
            max_model_len=self.max_model_len,
        )

    def _profiled(self, model: str, path: Path) -> Node:
        from tuner.described.parse import AUTO
        from tuner.described.profiled import profiled_node
        from tuner.hardware import Precision
        from tuner.spec.errors import TunerError
        from tuner.work.models import load_model

        if self.chosen_backend is not None:
            raise TunerError(f"{path} says what serves there: leave out --backend")
        return profiled_node(
            path,
            load_model(model),
            precision=None if self.dtype == AUTO else Precision.parse(self.dtype),
            max_model_len=self.max_model_len,
        )


@dataclass(frozen=True, kw_only=True)
class ThisMachine:
    """Options that apply to this machine only, not to described hardware. ``cost_model`` None: its
    newest; ``link`` is an emulated one, as in ``latency_us=20,gbps=100``."""

    cost_model: str | None = None
    link: str | None = None
    kv_cache_mib: int | None = None
