"""Problems whose every combination is simulated once, so that searches replay look-ups."""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from engine.spec.measurement import Fidelity
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Order
from policies.points import Estimate, OperatingPoint
from policies.report import flat_metrics
from policies.sla import Sla
from policies.verdict import meets_in_run
from tuner.described.node import Node
from tuner.described.parse import describe_node
from tuner.launch.why_not import why_not
from tuner.search.corrected import Corrected
from tuner.search.design import rank_point
from tuner.search.feasibility import refused_caps
from tuner.search.grid import Grid
from tuner.search.surrogate import Load
from tuner.spec.errors import TunerError
from tuner.spec.space import Space, build_space
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Workload

CACHE = Path("runs/search-samplers")
SIMULATION_SEED = 3
WITHIN = 0.01


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question and the grids of its space."""

    name: str
    model: str
    hardware: str
    backend: str
    workload: str
    sla: str
    num_seqs: tuple[int, ...]
    batched_tokens: tuple[int, ...]
    thresholds: tuple[int, ...] = (32, 128, 512, 2048)
    sla_keys: tuple[str, ...] = ()
    step_ms: tuple[int | None, ...] = (None,)
    orders: tuple[Order, ...] = (Order.FCFS,)


# Bounds of a problem without an SLA are the least of these quantiles of its own table at which so
# large a share of the combinations meets all of them.
QUANTILES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
MET_SHARE = 0.1

PROBLEMS = (
    Asked(
        name="8B chat",
        model="llama-3.1-8b",
        hardware="4xh100",
        backend="gearshift",
        workload="gamma:rate=36,cv=2,input=700,output=60,requests=90",
        sla="p95_ttft_ms<=200,p95_tpot_ms<=16",
        num_seqs=(16, 64, 256),
        batched_tokens=(256, 1024, 4096),
        thresholds=(128, 1024),
        step_ms=(12, None),
        orders=(Order.FCFS, Order.SHORTEST_PROMPT),
    ),
    Asked(
        name="70B documents",
        model="llama-3.1-70b",
        hardware="8xh200",
        backend="arctic",
        workload="burst:rate=1.5,peak=4.5,on_s=4,off_s=8,input=3000,output=40,requests=80",
        sla="p95_ttft_ms<=1500,p95_tpot_ms<=75",
        num_seqs=(8, 16, 32, 64, 128, 256),
        batched_tokens=(512, 1024, 2048, 4096, 8192),
        thresholds=(32, 128, 512, 2048),
    ),
    Asked(
        name="32B clients",
        model="qwen2.5-32b",
        hardware="8xa100",
        backend="vllm",
        workload="closed:concurrency=32,input=lognormal:900~0.6,output=lognormal:60~0.4,requests=64",
        sla="p95_ttft_ms<=1400,p95_tpot_ms<=60",
        num_seqs=(8, 16, 32, 128),
        batched_tokens=(256, 512, 1024, 2048, 8192),
    ),
)

# Nobody looked at a table of these before a search had run on them: bounds follow from a rule.
UNSEEN = (
    Asked(
        name="7B mixed",
        model="qwen2.5-7b",
        hardware="4xh200",
        backend="trtllm",
        workload="poisson:rate=40,input=lognormal:1500~0.8,output=lognormal:100~0.6,requests=120",
        sla="",
        sla_keys=("p95_ttft_ms", "p95_tpot_ms"),
        num_seqs=(8, 16, 32, 64, 128, 256),
        batched_tokens=(256, 512, 1024, 2048, 4096, 8192),
    ),
    Asked(
        name="32B bursts",
        model="qwen3-32b",
        hardware="8xh100",
        backend="vllm",
        workload="gamma:rate=10,cv=2,input=2000,output=80,input_cv=0.5,output_cv=0.5,requests=120",
        sla="",
        sla_keys=("p95_ttft_ms", "p95_tpot_ms"),
        num_seqs=(8, 16, 32, 64, 128, 256),
        batched_tokens=(512, 1024, 2048, 4096, 8192),
    ),
)


class Problem:
    """One question with a point for each combination of its grid."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.node: Node = describe_node(
            model=asked.model, hardware=asked.hardware, backend=asked.backend
        )
        self.workload: Workload = parse_workload(asked.workload, seed=SIMULATION_SEED)
        self.grid = Grid(self._space())
        self.sla = Sla.parse(asked.sla) if asked.sla else self._ruled_sla()

    def _ruled_sla(self) -> Sla:
        """By ``QUANTILES``, from the table alone."""
        keys = self.asked.sla_keys
        self.sla = Sla.parse(",".join(f"{key}<=1" for key in keys))
        every = np.array([[p.metrics[key].value for key in keys] for p in self.points])
        for quantile in QUANTILES:
            bounds = np.quantile(every, quantile, axis=0)
            if (every <= bounds).all(axis=1).mean() >= MET_SHARE:
                break
        del self.points  # they were flattened for the stand-in bounds
        said = zip(keys, bounds, strict=True)
        return Sla.parse(",".join(f"{key}<={bound:.4g}" for key, bound in said))

    def _space(self) -> Space:
        asked, node = self.asked, self.node

        def check(plan: ParallelPlan) -> None:
            reason = why_not(node.backend.name, plan)
            if reason is not None:
                raise TunerError(reason)
            longest = int((self.workload.input_tokens + self.workload.output_tokens).max())
            found = node.memory(plan, needed_kv_tokens=longest)
            if found.reason is not None:
                raise TunerError(found.reason)

        space = build_space(
            node.model,
            node.hardware.count,
            check_memory=check,
            max_model_len=node.model.max_positions,
        )
        space = replace(
            space,
            num_seqs=asked.num_seqs,
            batched_tokens=asked.batched_tokens,
            thresholds=asked.thresholds,
            step_ms=asked.step_ms,
            orders=asked.orders,
        )
        return replace(space, refused=refused_caps(space, node, self.workload))

    @cached_property
    def points(self) -> list[OperatingPoint]:
        """The simulated point of each row; kept in a file."""
        # Bounds may change without a new simulation: every percentile is kept.
        asked = {key: v for key, v in self.asked.__dict__.items() if key not in ("sla", "sla_keys")}
        said = json.dumps([{**asked, "sla": ""}, SIMULATION_SEED], default=str)
        path = CACHE / f"{hashlib.sha256(said.encode()).hexdigest()[:16]}.json"
        if not path.exists():
            CACHE.mkdir(parents=True, exist_ok=True)
            began_s = time.process_time()
            flats = [self._flat(row) for row in range(len(self.grid))]
            seconds = time.process_time() - began_s
            path.write_text(json.dumps({"cpu_s": seconds, "flats": flats}))
        flats = json.loads(path.read_text())["flats"]
        return [self._point(row, flat) for row, flat in enumerate(flats)]

    def _flat(self, row: int) -> dict[str, float]:
        result = self.node.simulate(self.grid.settings(row), self.workload, seed=SIMULATION_SEED)
        return flat_metrics(result.measurement, self.sla)

    def _point(self, row: int, flat: dict[str, float]) -> OperatingPoint:
        return OperatingPoint(
            settings=self.grid.settings(row),
            fidelity=Fidelity.SIMULATED,
            metrics={key: Estimate.exact(value) for key, value in flat.items()},
        )

    @cached_property
    def estimates(self) -> list[OperatingPoint]:
        """What arithmetic alone says of each row."""
        return [self.guide.estimate(row) for row in range(len(self.grid))]

    def is_met(self, row: int) -> bool:
        return meets_in_run(self.points[row], self.sla)

    @cached_property
    def best(self) -> tuple[int, float]:
        """Devices and latency score of the exhaustive optimum."""
        met = [row for row in range(len(self.grid)) if self.is_met(row)]
        if not met:
            raise SystemExit(f"{self.asked.name}: nothing meets the SLA")
        return min(
            (self.points[r].cost_devices, self.points[r].latency_score(self.sla)) for r in met
        )

    @cached_property
    def hits(self) -> frozenset[int]:
        """Rows within 1 % of the optimum by latency, on as many devices."""
        devices, latency = self.best
        return frozenset(
            row
            for row, point in enumerate(self.points)
            if self.is_met(row)
            and point.cost_devices == devices
            and point.latency_score(self.sla) <= latency + math.log1p(WITHIN)
        )

    @cached_property
    def guide(self) -> Corrected:
        """Estimates to be corrected by what a search finds."""
        load = Load.of(self.workload)
        return Corrected(
            grid=self.grid,
            sla=self.sla,
            load=load,
            timer=self.node.timer,
        )

    @cached_property
    def ranks(self) -> list[tuple[float, ...]]:
        """A sort key of each row by its estimate: least missed, fewest devices, then fastest."""
        return [rank_point(point, self.sla) for point in self.estimates]

    @cached_property
    def shortlist(self) -> list[int]:
        """The best row of each plan by estimate, best plans first."""
        best: dict[ParallelPlan, int] = {}
        for row in sorted(range(len(self.grid)), key=lambda row: self.ranks[row]):
            best.setdefault(self.estimates[row].settings.plan, row)
        return list(best.values())
