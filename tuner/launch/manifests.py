"""A launch command as a Kubernetes Deployment and as a Compose service.

Sources: the deployment pages of vLLM and SGLang for images, ports and shared memory; Kubernetes'
``apps/v1`` reference; the Compose specification on GPU reservations.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tuner.launch.command import System

Json = dict[str, Any]
IMAGES = {System.VLLM: "vllm/vllm-openai", System.SGLANG: "lmsysorg/sglang"}
NEWEST = "latest"
GPUS = "nvidia.com/gpu"
# The path in the container of a volume of its own.
SHARED_MEMORY = "/dev/shm"  # nosec B108
# A large model is read and compiled for meanwhile, so the first look may fail this often.
LOOK_S, STARTS = 10, 180
MOST_NAME = 63
# The first words of a command, which are the program itself.
PROGRAM = {System.VLLM: 2, System.SGLANG: 3}


@dataclass(frozen=True, kw_only=True)
class Container:
    """``words`` start one server of ``system`` that listens on ``port`` and uses all of
    ``num_devices``. ``release``: its version, None: whatever is newest."""

    name: str
    system: System
    words: tuple[str, ...]
    num_devices: int
    port: int
    release: str | None = None

    @property
    def image(self) -> str:
        tag = NEWEST if self.release is None else f"v{self.release}"
        return f"{IMAGES[self.system]}:{tag}"

    @property
    def label(self) -> str:
        """The name as Kubernetes accepts it: small letters, digits and dashes."""
        plain = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:MOST_NAME].rstrip("-")
        return plain if plain and plain[0].isalpha() else f"engine-{plain}".rstrip("-")[:MOST_NAME]

    @property
    def program(self) -> Sequence[str]:
        """What runs, whatever the image would start by itself."""
        return self.words[: PROGRAM[self.system]]

    @property
    def arguments(self) -> Sequence[str]:
        return self.words[PROGRAM[self.system] :]


def kubernetes(container: Container) -> str:
    """A Deployment of one pod. Its devices are all taken while it runs, so the pod before it ends
    first; ``strategy`` may say otherwise where there are twice as many."""
    labels = {"app": container.label}
    look = {"httpGet": {"path": "/health", "port": container.port}, "periodSeconds": LOOK_S}
    pod = {
        "containers": [
            {
                "name": "server",
                "image": container.image,
                "command": list(container.program),
                "args": list(container.arguments),
                "ports": [{"containerPort": container.port}],
                "resources": {"limits": {GPUS: container.num_devices}},
                "startupProbe": {**look, "failureThreshold": STARTS},
                "readinessProbe": look,
                "volumeMounts": [{"name": "shm", "mountPath": SHARED_MEMORY}],
            }
        ],
        # Ranks speak with each other through it.
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }
    return _yaml(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": container.label, "labels": labels},
            "spec": {
                "replicas": 1,
                "strategy": {"type": "Recreate"},
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        }
    )


def compose(container: Container) -> str:
    """A file with one service."""
    devices = {"driver": "nvidia", "count": container.num_devices, "capabilities": ["gpu"]}
    service = {
        "image": container.image,
        "entrypoint": list(container.program),
        "command": list(container.arguments),
        "ports": [f"{container.port}:{container.port}"],
        "ipc": "host",
        "restart": "unless-stopped",
        "deploy": {"resources": {"reservations": {"devices": [devices]}}},
    }
    return _yaml({"services": {container.label: service}})


def _yaml(document: Json) -> str:
    return msgspec.yaml.encode(document).decode()
