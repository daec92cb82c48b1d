"""Valid words of every command, to which a test adds what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LOAD = "poisson:rate=2,input=8,output=4,seconds=3"
DESCRIBED = ("--model", "llama-3.1-8b", "--hardware", "h100", "--workload", LOAD)
JOB_WORDS = ("show", "follow", "trials", "pareto", "importance", "cancel", "delete")
POLICY_WORDS = ("show", "list", "diff", "knobs", "rollback")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Files and a port that every command's valid words name."""

    folder: Path
    model: Path
    taken_port: int

    def words(self, path: str) -> tuple[str, ...]:
        """Valid words of a command: it would end by working, or by what is not there."""
        model, port = str(self.model), str(self.taken_port)
        tuned = (*DESCRIBED, "--sla", "p95_ttft_ms<=5000")
        service = ("--service", "http://127.0.0.1:9")
        return {
            "model create": (str(self.folder / "new"),),
            "generate": ("--model", model, "--prompt", "x", "--max-tokens", "2"),
            "engine serve": ("--model", model, "--port", port),
            "bench": ("--url", "http://127.0.0.1:9", "--workload", LOAD),
            "profile": ("--model", model, "--out", str(self.folder / "p.json"), "--seconds", "1"),
            "simulate": (*DESCRIBED, "--no-intervals"),
            "plan": (*tuned, "--jobs", "1"),
            "compare": (*DESCRIBED, "--draws", "2", "--jobs", "1"),
            "report": (str(self.folder / "none.json"),),
            "doctor": ("--port", port),
            "up": ("--model", model, "--sla", "p95_ttft_ms<=5000", "--trials", "0", "--port", port),
            "capacity": (*tuned, "--plan", "tp=1", "--draws", "2"),
            "export": ("rec_none", "--format", "vllm"),
            "tune": (*tuned, "--trials", "1", "--devices", "1"),
            "workload sample": (LOAD, "--out", str(self.folder / "load.csv")),
            "workload show": ("wl_0", *service),
            "workload upload": (str(self.folder / "file"), *service),
            "workload list": service,
            "workload delete": ("wl_none", *service),
            "engines observe": ("http://127.0.0.1:9", "--plan", "tp=1", *service),
            "engines list": service,
            "engines show": ("eng_none", *service),
            "engines forecast": ("eng_none", *service),
            "engines bind": ("eng_none", str(self.folder / "table.json"), *service),
            "engines advise": ("eng_none", *service),
            "engines forget": ("eng_none", *service),
            "rollouts start": ("rec_none", "--engine", "eng_none", *service),
            "rollouts list": service,
            "rollouts show": ("ro_none", *service),
            "rollouts follow": ("ro_none", *service),
            "rollouts cancel": ("ro_none", *service),
            "jobs create": (*tuned, *service),
            "jobs list": service,
            **{f"jobs {word}": ("job_none", *service) for word in JOB_WORDS},
            "recommendations list": service,
            "recommendations show": ("rec_none", *service),
            **{f"policies {word}": ("eng_none", *service) for word in POLICY_WORDS},
            "policies apply": ("eng_none", "{}", *service),
            "decisions list": service,
            "decisions explain": ("1", *service),
            "cost-models upload": (str(self.folder / "file"), *service),
            "cost-models list": service,
            "cost-models show": ("cm_none", *service),
            "cost-models calibration": ("cm_none", *service),
            "audit list": (),
            "audit verify": (),
            "apply": ("rec_none", "--engine", "http://127.0.0.1:9"),
            "import": (str(self.folder / "file"),),
            "list": ("models",),
            "backends show": ("vllm",),
            "devices": (),
            "serve": ("--port", port),
            "keys create": ("ci", "--scope", "read"),
            "keys list": (),
            "keys revoke": ("key_none",),
            "keys rotate": ("key_none",),
            "db upgrade": (),
            "db check": (),
            "demo": ("--trace", str(self.folder / "none.csv")),
        }[path]

    def hostile(self, value: str) -> str:
        """A hostile value with its folder filled in."""
        return value.replace("FILE", str(self.folder / "file"))
