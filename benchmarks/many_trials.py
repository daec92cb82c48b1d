"""One finished tuning job with as many trials as one likes, as the tuner would leave it."""

from __future__ import annotations

import random
from typing import Any

from engine.spec.settings import Settings
from store import Database
from store.models import JobState, TuningJob
from store.models.base import utc_now

SLA = "p95_ttft_ms<=500,p95_tpot_ms<=50"
SPEC = {
    "model_dir": "llama-3.1-8b",
    "num_devices": 8,
    "workload": "poisson:rate=4,input=512,output=64,seconds=20",
    "sla": SLA,
    "trials": 1000,
    "seed": 0,
    "hardware": "8xh200",
    "backend": "vllm",
    "dtype": None,
    "cost_model_id": None,
    "options": {},
}
LATENCIES = ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms")
PERCENTILES = ("mean", "p50", "p90", "p95", "p99")
Json = dict[str, Any]


def add_job_of(url: str, num_trials: int, *, seed: int) -> str:
    """Add a job that succeeded after ``num_trials`` trials; returns its id."""
    rng = random.Random(seed)
    database = Database(url)
    with database.begin() as uow:
        job = TuningJob(
            state=JobState.SUCCEEDED,
            reason="recommended",
            spec={**SPEC, "trials": num_trials},
            num_trials=num_trials,
            created_by="benchmark",
            started_at=utc_now(),
            finished_at=utc_now(),
        )
        uow.session.add(job)
        uow.session.flush()
        job_id = job.id
        for number in range(num_trials):
            uow.trials.add(job_id, _record(rng, number))
    database.close()
    return job_id


def _record(rng: random.Random, number: int) -> Json:
    dp, sp, tp = (rng.choice((1, 2)) for _ in range(3))
    plan = {"dp": dp, "pp": 1, "sp": sp, "tp": tp}
    caps = {
        "max_num_seqs": 2 ** rng.randint(4, 9),
        "max_num_batched_tokens": 2 ** rng.randint(9, 13),
    }
    settings = Settings.from_json({"plan": plan, "caps": caps})
    metrics = {
        f"{percentile}_{latency}": _estimate(rng)
        for latency in LATENCIES
        for percentile in PERCENTILES
    }
    return {
        "number": number,
        "settings": settings.to_json(),
        "fidelity": "simulated",
        "state": "complete",
        "is_feasible": rng.random() < 0.7,
        "reason": "simulated on 8xh200",
        "sla_probability": rng.random(),
        "predicted": None,
        "metrics": metrics,
    }


def _estimate(rng: random.Random) -> Json:
    value = rng.lognormvariate(3.0, 1.0)
    return {"value": value, "low": 0.8 * value, "high": 1.3 * value}
