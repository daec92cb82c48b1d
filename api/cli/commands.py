"""Every command: its words, where it lives, and its line in the help."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CommandRef:
    """Where a command lives: ``function`` of ``api.cli.<module>``, shown under ``path``.

    ``words``: another function there, which makes the command's words of those typed.
    """

    path: str
    module: str
    function: str
    help: str
    words: str = ""


GROUPS = {
    "model": "Make checkpoints.",
    "engine": "Run engines.",
    "engines": "Look at engines; observe vLLM and SGLang servers.",
    "workload": "Look at workloads, write them as traces, upload traces.",
    "backends": "Look at serving systems as they are simulated.",
    "jobs": "Queue tuning jobs at the control plane, and look at them.",
    "recommendations": "Look at what tuning jobs recommend.",
    "policies": "Look at what engines are asked to run, and change it.",
    "decisions": "Look at what the controller decided, and why.",
    "cost-models": "Look at step times that the control plane keeps.",
    "rollouts": "Prove policies on a running engine before they spread.",
    "audit": "Look at the audit trail, and verify it.",
    "keys": "Make, list, rotate and revoke API keys of the service.",
    "db": "Look after the database.",
}
# The order of the commands in the help of gearshift itself: by task, first things first.
SECTIONS = {
    "To begin": ("doctor", "up", "demo", "model"),
    "Ask without running": ("plan", "capacity", "simulate", "compare", "list", "backends"),
    "Serve, load and measure": (
        "engine",
        "generate",
        "bench",
        "import",
        "workload",
        "profile",
        "devices",
    ),
    "Find settings and use them": ("tune", "report", "export", "apply"),
    "Run the service": (
        "serve",
        "jobs",
        "recommendations",
        "engines",
        "policies",
        "rollouts",
        "decisions",
        "cost-models",
        "keys",
        "audit",
        "db",
    ),
}
# Words that people type for commands that have other names here.
OTHER_NAMES = {
    "what-if": "simulate",
    "predict": "simulate",
    "optimize": "tune",
    "status": "engines list",
    "observe": "engines observe",
    "rollback": "policies rollback",
    "diff": "policies diff",
}
_TABLE = {
    "model create": ("model:create", "Write a random checkpoint in Hugging Face format."),
    "generate": ("generate:generate", "Continue one prompt under a parallel plan."),
    "engine serve": ("engine_serve:serve", "Serve a model with an OpenAI-compatible API."),
    "engines observe": (
        "engines:observe",
        "Have the control plane look at a vLLM or SGLang server.",
    ),
    "engines list": ("engines:list_engines", "List engines."),
    "engines show": ("engines:show", "Say what an engine runs, or what is seen of a server."),
    "engines bind": ("engines:bind", "Hold an engine to a capacity table."),
    "engines advise": (
        "engines:advise",
        "Say what an observed server should run, and how to start it.",
    ),
    "engines forecast": (
        "engines:forecast",
        "Say what load the next minutes are expected to bring.",
    ),
    "engines forget": (
        "engines:forget",
        "Observe a server no more, or end a killed engine.",
    ),
    "workload sample": ("workload:sample", "Write a workload as a trace, for whoever has none."),
    "workload show": ("workload:show", "Say what a workload is: requests, rates, lengths, cuts."),
    "workload upload": ("workload_service:upload", "Upload a trace to the control plane."),
    "workload list": (
        "workload_service:list_uploaded",
        "List the traces that the control plane has.",
    ),
    "workload delete": ("workload_service:delete", "Remove a trace from the control plane."),
    "bench": ("bench:bench", "Replay a workload against a server, judge it by an SLA."),
    "import": (
        "import_runs:import_runs",
        "Read results of vllm bench serve, GuideLLM and AIPerf.",
    ),
    "profile": ("profile:profile", "Measure what steps cost, on this machine or a server."),
    "simulate": ("simulate:simulate", "Predict a plan's latencies on a workload."),
    "capacity": ("capacity:capacity", "Find the highest load that a plan carries within an SLA."),
    "compare": ("compare:compare", "Compare static plans, Shift and an oracle on one load."),
    "report": ("report:report", "Write an answer to read: Markdown, HTML or JSON."),
    "plan": ("plan:plan", "Find the plans that meet an SLA on described hardware."),
    "tune": ("tune:tune", "Search the plan, threshold and caps that meet an SLA."),
    "list": ("catalog:list_names", "List models, hardware, backends and links to name."),
    "devices": ("devices:devices", "Show this machine's devices, links, power and clocks."),
    "doctor": ("doctor:doctor", "Say what this machine has and lacks, and how to get it."),
    "backends show": (
        "backends:show",
        "List every setting of a serving system, and where it is from.",
    ),
    "apply": ("apply:apply", "Apply what plan or tune recommends to a running engine."),
    "export": ("export:export", "Write the command that starts an answer elsewhere."),
    "serve": ("serve:serve", "Run the control plane."),
    "up": ("up:up", "Tune a model for an SLA, and serve it."),
    "rollouts start": ("rollouts:start", "Prove a policy on a running engine, and let it spread."),
    "rollouts list": ("rollouts:list_rollouts", "List rollouts."),
    "rollouts show": ("rollouts:show", "Say how a rollout stands, and why."),
    "rollouts follow": ("rollouts:follow_one", "Tell what a rollout does until it ends."),
    "rollouts cancel": ("rollouts:cancel", "End a rollout, and go back to what ran before."),
    "jobs create": ("jobs:create", "Queue a tuning job."),
    "jobs list": ("jobs:list_jobs", "List tuning jobs."),
    "jobs show": ("jobs:show", "Say how a tuning job stands."),
    "jobs follow": ("jobs:follow_one", "Tell what a tuning job does until it ends."),
    "jobs trials": ("job_findings:trials", "List a tuning job's trials."),
    "jobs pareto": ("job_findings:pareto", "List the settings that no other beats."),
    "jobs importance": ("job_findings:importance", "Say which knobs mattered."),
    "jobs cancel": ("jobs:cancel", "End a tuning job; what it found is kept."),
    "jobs delete": ("jobs:delete", "Remove a tuning job that has ended."),
    "recommendations list": ("recommendations:list_recommendations", "List recommendations."),
    "recommendations show": ("recommendations:show", "Say what is recommended, and why."),
    "policies show": ("policies:show", "Say what an engine is asked to run, and what is in force."),
    "policies list": ("policies:list_versions", "List an engine's policies by version."),
    "policies diff": ("policies:diff", "Say in what two versions differ."),
    "policies knobs": ("policies:knobs", "List what can be changed of a running engine."),
    "policies apply": (
        "policies:apply",
        "Ask an engine for other settings, or only what that would do.",
    ),
    "policies rollback": ("policies:roll_back", "Ask an engine for an earlier version again."),
    "decisions list": ("decisions:list_decisions", "List what the controller decided."),
    "decisions explain": ("decisions:explain", "Say why the controller did what it did."),
    "cost-models upload": ("cost_models:upload", "Give the control plane step times."),
    "cost-models list": ("cost_models:list_cost_models", "List step models."),
    "cost-models show": ("cost_models:show", "Say what a step model is of."),
    "cost-models calibration": ("cost_models:calibration", "Say how right a step model was."),
    "audit list": ("audit:list_entries", "List who changed what, and why."),
    "audit verify": ("audit:verify", "Say whether the audit chain is whole."),
    "keys create": ("keys:create", "Make an API key, and show it once."),
    "keys list": ("keys:list_keys", "List API keys."),
    "keys rotate": ("keys:rotate", "Make a key in place of another, and show it once."),
    "keys revoke": ("keys:revoke", "Revoke an API key."),
    "db upgrade": ("db:upgrade", "Bring the database to the newest schema."),
    "db check": ("db:check", "Say whether the database has the newest schema."),
    "demo": ("demo:demo", "Show the whole loop: tuning, serving, control."),
}
# Commands whose typed words are first translated, by these functions of their modules.
_WORDS = {"engine serve": "known_words"}
COMMANDS = tuple(
    CommandRef(
        path=path,
        module=place.partition(":")[0],
        function=place.partition(":")[2],
        help=text,
        words=_WORDS.get(path, ""),
    )
    for path, (place, text) in _TABLE.items()
)
