"""Every table, imported so that ``Base.metadata`` is complete."""

from __future__ import annotations

from store.models.access import ApiKey, AuditEntry, IdempotencyKey
from store.models.base import Base
from store.models.rollouts import RolloutEventRow, RolloutRow, RolloutState
from store.models.servers import ServerRow, Sight
from store.models.serving import (
    AckState,
    DecisionRow,
    DeviceLease,
    EngineLoad,
    EngineRow,
    Heartbeat,
    PolicyVersion,
)
from store.models.tuning import (
    CostModel,
    Groundwork,
    JobEventRow,
    JobState,
    MeasurementRow,
    RecommendationRow,
    Trial,
    TuningJob,
)
from store.models.workloads import WorkloadPart, WorkloadRow

__all__ = [
    "AckState",
    "ApiKey",
    "AuditEntry",
    "Base",
    "CostModel",
    "DecisionRow",
    "DeviceLease",
    "EngineLoad",
    "EngineRow",
    "Groundwork",
    "Heartbeat",
    "IdempotencyKey",
    "JobEventRow",
    "JobState",
    "MeasurementRow",
    "PolicyVersion",
    "RecommendationRow",
    "RolloutEventRow",
    "RolloutRow",
    "RolloutState",
    "ServerRow",
    "Sight",
    "Trial",
    "TuningJob",
    "WorkloadPart",
    "WorkloadRow",
]
