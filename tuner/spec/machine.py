"""Which machine a number was measured on, and where its cost models are kept."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from engine.spec.processor import num_cores, processor_facts, processor_name

DATA_DIR_VARIABLE = "GEARSHIFT_DATA_DIR"


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What step times depend on besides the model: processor, cores, torch build, device, and how
    many threads compute on each rank.
    """

    cpu_model: str
    num_cores: int
    torch_version: str
    device: str = "cpu"
    threads_per_rank: int = 1

    @property
    def id(self) -> str:
        """A short hash that names the machine."""
        facts = asdict(self)
        if self.threads_per_rank == 1:
            del facts["threads_per_rank"]  # the names that machines had before it was a fact
        raw = json.dumps(facts, sort_keys=True).encode()
        return hashlib.sha256(raw).hexdigest()[:12]

    @property
    def served_on(self) -> str:
        """The device, and the threads of each rank where there are several."""
        threads = f", {self.threads_per_rank} threads per rank" if self.threads_per_rank > 1 else ""
        return f"{self.device}{threads}"

    def is_same_host(self, other: Fingerprint) -> bool:
        """Whether they differ at most in the device and the threads per rank."""
        ours = replace(self, device=other.device, threads_per_rank=other.threads_per_rank)
        return ours == other

    def __str__(self) -> str:
        host = f"{self.cpu_model}, {self.num_cores} cores, torch {self.torch_version}"
        return f"{host}, {self.served_on}"


def this_machine(device: str = "cpu", *, threads_per_rank: int = 1) -> Fingerprint:
    """The fingerprint of the machine we run on (imports no torch)."""
    return Fingerprint(
        cpu_model=_cpu_model(),
        num_cores=num_cores(),
        torch_version=version("torch"),
        device=device.partition(":")[0],
        threads_per_rank=threads_per_rank,
    )


def data_dir() -> Path:
    """``$GEARSHIFT_DATA_DIR``, else ``gearshift`` in the XDG data folder."""
    if configured := os.environ.get(DATA_DIR_VARIABLE):
        return Path(configured)
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "gearshift"


def cost_model_dir() -> Path:
    """Where cost models are kept, in the data folder."""
    return data_dir() / "cost-models"


def _cpu_model() -> str:
    facts = processor_facts()
    if not facts:
        return platform.processor() or platform.machine()
    name = processor_name()
    # Some hypervisors hide the name; the family tells generations apart.
    return f"{name} family {facts['cpu family']}" if facts.get("cpu family") else name
