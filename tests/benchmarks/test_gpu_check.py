"""What a CUDA step launches, counted on tensors without memory; what waits is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch

from engine.spec.model import ModelConfig

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)

EVERY_LAYER = {
    "add_norm_kernel": 2,
    "place_heads_kernel": 1,
    "decode_kernel": 1,
    "join_kernel": 1,
    "silu_mul_kernel": 1,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    from benchmarks.gpu_check.model import write_config

    return write_config(tmp_path_factory.mktemp("shape"), "tiny")


@pytest.mark.parametrize(
    ("num_rows", "has_prefill", "others"),
    [
        (4, False, {"linear": 4}),
        (64, True, {"linear": 4, "prefill_kernel": 1}),
    ],
)
def test_a_layer_is_few_launches_and_nothing_of_it_touches_the_host(
    model: ModelConfig, num_rows: int, has_prefill: bool, others: dict[str, int]
) -> None:
    from benchmarks.gpu_check.launches import count_launches

    found = count_launches(model, num_layers=80, num_rows=num_rows, has_prefill=has_prefill)
    assert found.per_layer == EVERY_LAYER | others
    # Embedding, and the last sum: a graph's launches.
    assert found.per_step == 80 * sum(found.per_layer.values()) + 2
    assert found.tail == 2


def on_host(x: torch.Tensor) -> object:
    return x + torch.ones(4)


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: torch.equal(x, x),
        lambda x: torch.ones(4).to(x.device),
        on_host,
    ],
)
def test_what_waits_for_the_device_or_touches_the_host_is_refused(
    work: Callable[[torch.Tensor], object],
) -> None:
    from benchmarks.gpu_check.launches import DEVICE, Tally, counted

    x = torch.zeros(4, device=DEVICE)
    with pytest.raises((AssertionError, RuntimeError)), counted(Tally()):
        work(x)
