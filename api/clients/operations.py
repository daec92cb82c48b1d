"""Every operation that the REST interface offers to people and programs, by its name there.

Left out: what engines alone send (registration, heartbeats, acknowledgements).
"""

from __future__ import annotations

from pathlib import Path

from api.clients.calls import (
    Body,
    Call,
    Json,
    act,
    ask,
    change,
    create,
    delete,
    get,
    get_all,
    get_list,
    operation,
)
from api.clients.operations_access import AccessOperations
from api.documents.policy import etag
from api.schemas.analysis import ImportanceView, ParetoView
from api.schemas.capacity import CapacityView
from api.schemas.launch import LaunchView
from api.schemas.observed import AdviceView, ObservationView
from api.schemas.prediction import CalibrationView, PredictionView
from api.schemas.rollouts import RolloutDetail, RolloutView
from api.schemas.serving import (
    ChangeSet,
    DecisionView,
    EngineView,
    ForecastView,
    PolicyVersionView,
    PolicyView,
)
from api.schemas.tuning import (
    CostModelSummary,
    CostModelView,
    RecommendationView,
    TrialView,
    TuningJobView,
)
from api.schemas.workloads import WorkloadSummary, WorkloadView
from tuner.described.catalog import (
    BackendSettings,
    ListedBackend,
    ListedHardware,
    ListedLink,
    ListedModel,
)

JOBS = "/v1/tuning-jobs"
WORKLOADS = "/v1/workloads"
RECOMMENDATIONS = "/v1/recommendations"
ENGINES = "/v1/engines"
ROLLOUTS = "/v1/rollouts"
COST_MODELS = "/v1/cost-models"
DECISIONS = "/v1/decisions"


class Operations(AccessOperations):
    """What both clients can do. Lists come whole, over all their pages.

    What creates something takes ``key``, an idempotency key: with the same key and body the service
    gives its first answer again. Without one a call has a key of its own, so that it is repeated
    safely where its answer is lost.
    """

    # -- tuning jobs ---------------------------------------------------------------------------

    @operation
    def create_tuning_job(self, body: Body, *, key: str | None = None) -> Call[TuningJobView]:
        """Queue a tuning job (``api.schemas.tuning.TuningJobCreate``)."""
        return create(JOBS, TuningJobView, body, key=key)

    @operation
    def list_tuning_jobs(self, *, state: str | None = None) -> Call[list[TuningJobView]]:
        """Tuning jobs, newest first, of one state or of all."""
        return get_all(JOBS, TuningJobView, state=state)

    @operation
    def get_tuning_job(self, job_id: str) -> Call[TuningJobView]:
        """A tuning job."""
        return get(f"{JOBS}/{job_id}", TuningJobView)

    @operation
    def cancel_tuning_job(self, job_id: str) -> Call[TuningJobView]:
        """Ask a job to end with what it has found."""
        return act(f"{JOBS}/{job_id}:cancel", TuningJobView)

    @operation
    def delete_tuning_job(self, job_id: str) -> Call[None]:
        """Remove a job that has ended."""
        return delete(f"{JOBS}/{job_id}")

    @operation
    def list_trials(self, job_id: str) -> Call[list[TrialView]]:
        """A job's trials so far."""
        return get_all(f"{JOBS}/{job_id}/trials", TrialView)

    @operation
    def get_pareto_front(self, job_id: str) -> Call[ParetoView]:
        """Settings of a job that no other of its settings is better than in everything."""
        return get(f"{JOBS}/{job_id}/pareto", ParetoView)

    @operation
    def get_importance(self, job_id: str) -> Call[ImportanceView]:
        """How much each knob had to do with latency."""
        return get(f"{JOBS}/{job_id}/importance", ImportanceView)

    @operation
    def get_tuning_report(self, job_id: str) -> Call[Json]:
        """The whole answer of a job, as ``gearshift tune --json`` prints it."""
        return get(f"{JOBS}/{job_id}/report", Json)

    # -- workloads -----------------------------------------------------------------------------

    @operation
    def create_workload(
        self, path: Path, *, name: str | None = None, form: str = "auto", key: str | None = None
    ) -> Call[WorkloadView]:
        """Upload a trace, streamed; ``name`` None: as the file is called."""
        return create(
            WORKLOADS,
            WorkloadView,
            key=key,
            file=path,
            params={"name": (name or path.name)[:120], "form": form},
            headers={"Content-Type": "text/csv"},
        )

    @operation
    def list_workloads(self) -> Call[list[WorkloadSummary]]:
        """Uploaded traces, newest first."""
        return get_all(WORKLOADS, WorkloadSummary)

    @operation
    def get_workload(self, workload_id: str) -> Call[WorkloadView]:
        """An uploaded trace and the shape of its traffic."""
        return get(f"{WORKLOADS}/{workload_id}", WorkloadView)

    @operation
    def delete_workload(self, workload_id: str) -> Call[None]:
        """Remove a trace that no job names."""
        return delete(f"{WORKLOADS}/{workload_id}")

    # -- recommendations -----------------------------------------------------------------------

    @operation
    def list_recommendations(self) -> Call[list[RecommendationView]]:
        """Recommendations, newest first."""
        return get_all(RECOMMENDATIONS, RecommendationView)

    @operation
    def get_recommendation(self, recommendation_id: str) -> Call[RecommendationView]:
        """What a job recommends, and its schedule."""
        return get(f"{RECOMMENDATIONS}/{recommendation_id}", RecommendationView)

    @operation
    def export_recommendation(self, recommendation_id: str, *, form: str) -> Call[LaunchView]:
        """The command that starts it on a serving system, as in ``vllm``."""
        return get(f"{RECOMMENDATIONS}/{recommendation_id}/export", LaunchView, format=form)

    @operation
    def apply_recommendation(
        self,
        recommendation_id: str,
        engine_id: str,
        *,
        is_dry_run: bool = False,
        reason: str = "apply recommendation",
    ) -> Call[ChangeSet]:
        """Make it the engine's next policy, or only say what that would change."""
        return act(
            f"{RECOMMENDATIONS}/{recommendation_id}:apply",
            ChangeSet,
            {"engine_id": engine_id, "reason": reason},
            dry_run=_flag(is_dry_run),
        )

    # -- engines and their policies ------------------------------------------------------------

    @operation
    def list_engines(self) -> Call[list[EngineView]]:
        """Engines that have registered."""
        return get_all(ENGINES, EngineView)

    @operation
    def get_engine(self, engine_id: str) -> Call[EngineView]:
        """An engine, with the policy it runs."""
        return get(f"{ENGINES}/{engine_id}", EngineView)

    @operation
    def get_engine_capabilities(self, engine_id: str) -> Call[list[Json]]:
        """Its knobs, with their ranges and what a change of each costs."""
        return get_list(f"{ENGINES}/{engine_id}/capabilities", Json)

    @operation
    def get_engine_policy(self, engine_id: str) -> Call[PolicyView]:
        """Its newest policy, asked for and in force."""
        return get(f"{ENGINES}/{engine_id}/policy", PolicyView)

    @operation
    def patch_engine_policy(
        self,
        policy: PolicyView,
        patch: Json,
        *,
        is_dry_run: bool = False,
        reason: str = "changed by hand",
    ) -> Call[ChangeSet]:
        """Merge ``patch`` into ``policy`` as it was read, or only say what that would change;
        refused (412) where that is not the newest any more."""
        return change(
            f"{ENGINES}/{policy.engine_id}/policy",
            ChangeSet,
            patch,
            etag=etag(policy.version, policy.requested),
            reason=reason,
            dry_run=_flag(is_dry_run),
        )

    @operation
    def list_policy_versions(self, engine_id: str) -> Call[list[PolicyVersionView]]:
        """Its policies so far, newest first."""
        return get_all(f"{ENGINES}/{engine_id}/policy/versions", PolicyVersionView)

    @operation
    def roll_back_engine_policy(
        self, engine_id: str, *, version: int | None = None, reason: str = "rollback"
    ) -> Call[ChangeSet]:
        """Ask for an earlier version again, by default the one before."""
        body = {"reason": reason} | ({} if version is None else {"version": version})
        return act(f"{ENGINES}/{engine_id}:rollback", ChangeSet, body)

    # -- engines that are not ours --------------------------------------------------------------

    @operation
    def observe_engine(self, body: Body, *, key: str | None = None) -> Call[EngineView]:
        """Look at a vLLM or SGLang server (``api.schemas.observed.ObserveRequest``)."""
        return create(f"{ENGINES}:observe", EngineView, body, key=key)

    @operation
    def get_engine_observation(self, engine_id: str) -> Call[ObservationView]:
        """What is seen of an observed engine."""
        return get(f"{ENGINES}/{engine_id}/observation", ObservationView)

    @operation
    def bind_engine(self, engine_id: str, body: Body) -> Call[ChangeSet]:
        """Hold an engine to a capacity table (``api.schemas.observed.BindRequest``)."""
        return act(f"{ENGINES}/{engine_id}:bind", ChangeSet, body)

    @operation
    def get_engine_advice(self, engine_id: str) -> Call[AdviceView]:
        """What an observed engine should run, and how to start it."""
        return get(f"{ENGINES}/{engine_id}/advice", AdviceView)

    @operation
    def deregister_engine(self, engine_id: str) -> Call[None]:
        """Observe an engine no more; one that reports itself says so by itself."""
        return Call(method="POST", path=f"{ENGINES}/{engine_id}:deregister", read=lambda _: None)

    # -- rollouts ------------------------------------------------------------------------------

    @operation
    def create_rollout(self, body: Body, *, key: str | None = None) -> Call[RolloutView]:
        """Prove a candidate and let it spread (``api.schemas.rollouts.RolloutCreate``)."""
        return create(ROLLOUTS, RolloutView, body, key=key)

    @operation
    def list_rollouts(
        self, *, engine_id: str | None = None, state: str | None = None
    ) -> Call[list[RolloutView]]:
        """Rollouts, newest first, of one engine or state or of all."""
        return get_all(ROLLOUTS, RolloutView, engine_id=engine_id, state=state)

    @operation
    def get_rollout(self, rollout_id: str) -> Call[RolloutDetail]:
        """A rollout, and the states it has had."""
        return get(f"{ROLLOUTS}/{rollout_id}", RolloutDetail)

    @operation
    def cancel_rollout(self, rollout_id: str) -> Call[RolloutView]:
        """End a rollout; the engine is asked for what it ran before."""
        return act(f"{ROLLOUTS}/{rollout_id}:cancel", RolloutView)

    # -- cost models and questions -------------------------------------------------------------

    @operation
    def create_cost_model(self, body: Body, *, key: str | None = None) -> Call[CostModelView]:
        """Keep a step model (``api.schemas.tuning.CostModelCreate``)."""
        return create(COST_MODELS, CostModelView, body, key=key)

    @operation
    def list_cost_models(self) -> Call[list[CostModelSummary]]:
        """Step models, newest first."""
        return get_all(COST_MODELS, CostModelSummary)

    @operation
    def get_cost_model(self, cost_model_id: str) -> Call[CostModelView]:
        """A step model with its document."""
        return get(f"{COST_MODELS}/{cost_model_id}", CostModelView)

    @operation
    def predict_with_cost_model(self, cost_model_id: str, body: Body) -> Call[PredictionView]:
        """Simulate settings under a workload (``api.schemas.prediction.PredictRequest``)."""
        return ask(f"{COST_MODELS}/{cost_model_id}:predict", PredictionView, body)

    @operation
    def get_calibration(self, cost_model_id: str) -> Call[CalibrationView]:
        """How right a step model has been."""
        return get(f"{COST_MODELS}/{cost_model_id}/calibration", CalibrationView)

    @operation
    def find_capacity(self, body: Body) -> Call[CapacityView]:
        """The load that settings carry (``api.schemas.capacity.CapacityRequest``)."""
        return ask("/v1/capacity", CapacityView, body)

    # -- names ---------------------------------------------------------------------------------

    @operation
    def list_models(self) -> Call[list[ListedModel]]:
        """Models that can be named."""
        return get_list("/v1/models", ListedModel)

    @operation
    def list_hardware(self) -> Call[list[ListedHardware]]:
        """Devices that can be named."""
        return get_list("/v1/hardware", ListedHardware)

    @operation
    def list_backends(self) -> Call[list[ListedBackend]]:
        """Serving systems that can be named."""
        return get_list("/v1/backends", ListedBackend)

    @operation
    def get_backend(self, backend: str, *, hardware: str | None = None) -> Call[BackendSettings]:
        """Every setting of a serving system, and where it is from."""
        return get(f"/v1/backends/{backend}", BackendSettings, hardware=hardware)

    @operation
    def list_links(self) -> Call[list[ListedLink]]:
        """Links that can be named."""
        return get_list("/v1/links", ListedLink)

    # -- control --------------------------------------------------------------------------------

    @operation
    def list_decisions(
        self, engine_id: str | None = None, *, newest: int | None = None
    ) -> Call[list[DecisionView]]:
        """Decisions of the controller, newest first, for one engine or for all; all of them, or so
        many."""
        return get_all(DECISIONS, DecisionView, newest=newest, engine_id=engine_id)

    @operation
    def get_decision(self, decision_id: int) -> Call[DecisionView]:
        """A decision of the controller."""
        return get(f"{DECISIONS}/{decision_id}", DecisionView)

    @operation
    def get_forecast(self, engine_id: str) -> Call[ForecastView]:
        """What the next minutes are expected to bring to an engine."""
        return get(f"/v1/forecasts/{engine_id}", ForecastView)


def _flag(is_set: bool) -> str | None:
    return "true" if is_set else None
