"""One example of each command, for its help; they tell of one model folder and one service."""

from __future__ import annotations

from api.cli.exit_codes import EPILOG

_LOAD = "--workload poisson:rate=4,input=512,output=64,seconds=60"
_SLA = "--sla 'p95_ttft_ms<=500,p95_tpot_ms<=50'"
_NODE = "--model llama-3.1-8b --hardware 2xh100"
EXAMPLES = {
    "model create": "./model --preset small --seed 1",
    "generate": "--model ./model --plan sp=2,shift=8 --prompt 'The quick' --max-tokens 8",
    "engine serve": "--model ./model --plan tp=2 --port 8000",
    "workload sample": "azure-like --out azure.csv --seed 1",
    "workload show": "azure:azure.csv,seconds=120",
    "workload upload": "azure.csv --service localhost:8700",
    "workload list": "--service localhost:8700",
    "workload delete": "wl_01 --service localhost:8700",
    "bench": f"--url http://127.0.0.1:8000 {_LOAD} {_SLA}",
    "import": f"vllm-bench.json {_SLA} --out runs.json",
    "profile": "--model ./model --out profile.json --seconds 40",
    "simulate": f"{_NODE} --plan tp=2 {_LOAD} {_SLA}",
    "capacity": f"{_NODE} --plan tp=2 {_LOAD} {_SLA}",
    "compare": f"{_NODE} {_LOAD} {_SLA} --draws 5",
    "report": "plan.json --out plan.html",
    "plan": f"{_NODE} {_LOAD} {_SLA} --out plan.json",
    "tune": f"--model ./model --devices 2 --trials 4 {_LOAD} {_SLA} --out report.json",
    "list": "hardware",
    "devices": "--seconds 5",
    "doctor": "--json",
    "backends show": "vllm@0.12 --hardware 8xh200",
    "apply": "report.json --engine localhost:8000 --dry-run",
    "export": "plan.json --format vllm",
    "serve": "--port 8700",
    "up": f"--model ./model {_SLA}",
    "engines observe": "http://10.0.0.5:8000 --name chat --plan tp=1 --sla 'p95_ttft_ms<=500'",
    "engines list": "--service localhost:8700",
    "engines show": "chat",
    "engines bind": "chat plan.json",
    "engines advise": "chat --format kubernetes",
    "engines forecast": "chat",
    "engines forget": "chat",
    "jobs create": f"--model llama-3.1-8b --hardware 2xh200 {_LOAD} {_SLA} --follow",
    "jobs list": "--state running",
    "jobs show": "job_01",
    "jobs follow": "job_01",
    "jobs trials": "job_01",
    "jobs pareto": "job_01",
    "jobs importance": "job_01 --json",
    "jobs cancel": "job_01",
    "jobs delete": "job_01",
    "recommendations list": "--service localhost:8700",
    "recommendations show": "rec_01",
    "policies show": "chat",
    "policies list": "chat",
    "policies diff": "chat --from 3 --to 5",
    "policies knobs": "chat",
    "policies apply": """chat '{"caps": {"max_num_seqs": 96}}' --dry-run""",
    "policies rollback": "chat --version 3 --reason 'TPOT rose'",
    "decisions list": "--engine chat --newest 50",
    "decisions explain": "42",
    "cost-models upload": "~/.local/share/gearshift/cost-models/cm_01.json",
    "cost-models list": "--service localhost:8700",
    "cost-models show": "cm_01 --json",
    "cost-models calibration": "cm_01",
    "rollouts start": "rec_01 --engine eng_01",
    "rollouts list": "--json",
    "rollouts show": "ro_01",
    "rollouts follow": "ro_01",
    "rollouts cancel": "ro_01",
    "audit list": "--newest 50",
    "audit verify": "--json",
    "keys create": "ops --scope apply --days 90",
    "keys list": "--json",
    "keys rotate": "key_01 --overlap-s 3600",
    "keys revoke": "key_01",
    "db upgrade": "--database-url sqlite:///gearshift.db",
    "db check": "--database-url sqlite:///gearshift.db",
    "demo": "--keep",
}
_WIDTH = 76


def epilog(path: str) -> str:
    """The end of the help of the command ``path``: an example where there is one, exit codes."""
    words = EXAMPLES.get(path)
    if words is None:
        return EPILOG
    # The mark keeps typer from filling the lines again.
    return f"\b\nExample:\n{_folded(f'gearshift {path} {words}')}\n\n{EPILOG}"


def _folded(command: str) -> str:
    """A command over as many lines as it takes, each beginning with an option."""
    first, *options = command.split(" --")
    lines = [first]
    for option in options:
        longer = f"{lines[-1]} --{option}"
        if len(longer) <= _WIDTH:
            lines[-1] = longer
        else:
            lines.append(f"    --{option}")
    return " \\\n".join(lines)
