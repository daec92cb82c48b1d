"""Quantised checkpoints answer what the numbers they stand for answer, under every plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.kernels.native_build import NO_COMPILER_VARIABLE
from engine.models.loader import SINGLE_FILE, Checkpoint
from engine.models.weights import StageWeights, load_stage
from engine.parallel.int8_library import as_held_on_cpu, find_int8
from engine.parallel.quantised import quantise
from engine.spec.errors import CheckpointError, PlanError
from engine.spec.feasible import check_plan
from engine.spec.model import DType, ModelConfig
from engine.spec.modes import BASE, SHIFT
from engine.spec.plan import ParallelPlan, parse_plan
from engine.spec.quantisation import WeightFormat
from tests.engine.checkpoints import family_config, reference, write_checkpoint
from tests.engine.quantised_checkpoints import KINDS, W8A8, quantise_checkpoint
from tests.engine.step_driver import DrivenSequence, StepDriver
from tests.engine.thread_ranks import ThreadReplica, ThreadWorld

PROMPTS = [[5, 9, 200, 31, 77, 8, 100], [1, 2, 3, 258]]
Q_PROJ = "model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Sizes that are no multiples of a block, and pieces of down_proj that are none at sp*tp = 2.
    config = family_config("llama", num_hidden_layers=2, intermediate_size=208)
    return write_checkpoint(tmp_path_factory.mktemp("source"), config)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its vocabulary of 259 is padded for two ranks, and its head is the embedding."""
    config = family_config("llama", num_hidden_layers=2, tie_word_embeddings=True)
    return write_checkpoint(tmp_path_factory.mktemp("tied"), config)


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a kind: ``quantised`` in it, and ``plain``, what it stands for."""
    folders: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            both = folders[name] / "quantised", folders[name] / "plain"
            quantise_checkpoint(source, *both, W8A8 if name == "w8a8" else KINDS[name])
        return folders[name]

    return make


def answers(
    folder: Path, plan: str = "tp=1", form: WeightFormat | None = None, device: str = "cpu"
) -> list[DrivenSequence]:
    parsed = parse_plan(plan).plan
    with ThreadReplica(
        model_dir=folder, plan=parsed, dtype=DType.FLOAT32, quantisation=form, device=device
    ) as replica:
        modes = (BASE, SHIFT) if parsed.shift else (BASE,)
        driver = StepDriver(
            replica, vocab_size=259, budget=11, mode=lambda step_id: modes[step_id % len(modes)]
        )
        return driver.run(PROMPTS, max_tokens=6)


def assert_same(got: list[DrivenSequence], wanted: list[DrivenSequence]) -> None:
    """Float32 on either device: the same tokens, from logits apart by rounding."""
    assert [sequence.output for sequence in got] == [sequence.output for sequence in wanted]
    for a, b in zip(got, wanted, strict=True):
        for mine, theirs in zip(a.logits, b.logits, strict=True):
            assert abs(mine - theirs).max() <= 1e-4 * abs(theirs).max()


@pytest.mark.parametrize("name", list(KINDS))
def test_a_quantised_checkpoint_answers_as_the_numbers_it_stands_for(
    made: Callable[[str], Path], name: str
) -> None:
    folder = made(name)
    found = answers(folder / "quantised")
    assert_same(found, answers(folder / "plain"))
    theirs = reference(folder / "plain", PROMPTS[:1], max_tokens=6, dtype=torch.float32)[0]
    assert found[0].output == theirs.output
    worst = max(
        abs(a - b).max() / abs(b).max() for a, b in zip(found[0].logits, theirs.logits, strict=True)
    )
    assert worst < 1e-4


@pytest.mark.parametrize("plan", ["tp=2", "sp=2,shift"])
@pytest.mark.parametrize("name", ["fp8-block", "compressed-channel"])
def test_every_plan_of_a_quantised_checkpoint_answers_alike(
    made: Callable[[str], Path], name: str, plan: str
) -> None:
    folder = made(name) / "quantised"
    assert_same(answers(folder, plan), answers(folder))


@pytest.mark.parametrize("form", [WeightFormat.FP8, WeightFormat.INT8])
def test_a_plain_checkpoint_is_quantised_alike_under_every_plan(
    source: Path, form: WeightFormat
) -> None:
    alone = answers(source, form=form)
    assert_same(answers(source, "sp=2,shift", form), alone)
    exact = answers(source)
    worst = abs(alone[0].logits[0] - exact[0].logits[0]).max() / abs(exact[0].logits[0]).max()
    assert 0 < worst < 0.3, "it is rounded, and near"


def held(folder: Path, model: ModelConfig, plan: ParallelPlan) -> StageWeights:
    """The weights of the last rank."""
    rank = plan.replica_size - 1
    return load_stage(
        model_dir=folder,
        model=model,
        plan=plan,
        rank=rank,
        dtype=torch.float32,
        device=torch.device("cpu"),
        groups=ThreadWorld(plan).groups(rank),
    )


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """A call after which there is none, until the end of the test."""

    def remove() -> None:
        monkeypatch.setenv(NO_COMPILER_VARIABLE, "1")
        find_int8.cache_clear()

    yield remove
    find_int8.cache_clear()


@pytest.mark.parametrize("plan", ["tp=1", "sp=2,shift"])
def test_int8_with_its_head_answers_alike_with_a_compiler_and_without(
    tied: Path, plan: str, without_compiler: Callable[[], None]
) -> None:
    model = ModelConfig.from_dir(tied).quantised(WeightFormat.INT8)
    found = answers(tied, plan, WeightFormat.INT8)
    sizes = [sizes_on_cpu(tied, model, plan)]
    without_compiler()
    assert_same(found, answers(tied, plan, WeightFormat.INT8))
    sizes.append(sizes_on_cpu(tied, model, plan))
    for resident, planned in sizes:
        assert resident == planned
    assert sizes[0][0] < 0.5 * sizes[1][0]


def assert_near(got: list[DrivenSequence], wanted: list[DrivenSequence], bound: float) -> None:
    """The first logits, up to where tokens may part, by their largest."""
    for a, b in zip(got, wanted, strict=True):
        assert 0 < abs(a.logits[0] - b.logits[0]).max() < bound * abs(b.logits[0]).max()


def test_a_published_w8a8_checkpoint_rounds_activations_unless_int8_is_asked_for(
    made: Callable[[str], Path],
) -> None:
    folder = made("w8a8")
    plain = answers(folder / "plain")
    assert_same(answers(folder / "quantised", form=WeightFormat.INT8), plain)
    assert_near(answers(folder / "quantised"), plain, 0.1)


def test_w8a8_answers_nearly_alike_with_a_compiler_and_without(
    tied: Path, without_compiler: Callable[[], None]
) -> None:
    """What a float's last bit moves over a half is rounded the other way: a 127th of a number."""
    model = ModelConfig.from_dir(tied).quantised(WeightFormat.W8A8)
    found = answers(tied, form=WeightFormat.W8A8)
    resident, planned = sizes_on_cpu(tied, model, "tp=1")
    assert resident == planned
    without_compiler()
    alone = answers(tied, form=WeightFormat.W8A8)
    assert sizes_on_cpu(tied, model, "tp=1") == (resident, planned), "torch's rows are rounded, too"
    for a, b in zip(found, alone, strict=True):
        assert abs(a.logits[0] - b.logits[0]).max() < 5e-3 * abs(b.logits[0]).max()


def test_plans_of_w8a8_differ_by_its_rounding(made: Callable[[str], Path]) -> None:
    """Columns that are cut have units of their own, which are finer."""
    folder = made("w8a8") / "quantised"
    assert_near(answers(folder, "tp=2"), answers(folder), 0.1)


def test_a_mode_of_w8a8_rounds_as_a_plan_that_runs_nothing_else(
    made: Callable[[str], Path],
) -> None:
    """A prompt's first step runs as base or as shift, in turn."""
    folder = made("w8a8") / "quantised"
    for mixed, base, shift in zip(
        answers(folder, "sp=2,shift"), answers(folder, "sp=2"), answers(folder, "tp=2"), strict=True
    ):
        found = [abs(mixed.logits[0] - alone.logits[0]).max() for alone in (base, shift)]
        assert min(found) <= 1e-4 * abs(base.logits[0]).max()


def sizes_on_cpu(folder: Path, model: ModelConfig, plan: str) -> tuple[int, int]:
    """Resident bytes of a rank's matrices, and planned ones."""
    parsed = parse_plan(plan).plan
    on_cpu = as_held_on_cpu(model, DType.FLOAT32)
    weights = held(folder, on_cpu, parsed)
    assert weights.final_norm is not None
    norms = sum(x.nbytes for layer in weights.layers for x in (layer.input_norm, layer.post_norm))
    resident = weights.num_bytes - norms - weights.final_norm.nbytes
    return resident, on_cpu.weight_bytes_per_rank(parsed, DType.FLOAT32)


def keeping(model: ModelConfig) -> ModelConfig:
    assert model.quantisation is not None
    return replace(model, quantisation=replace(model.quantisation, is_kept=True))


@pytest.mark.parametrize("plan", ["tp=1", "tp=2", "sp=2,shift"])
@pytest.mark.parametrize("name", [*KINDS, WeightFormat.FP8, WeightFormat.INT8])
def test_kept_weights_multiply_as_plain_ones_on_every_rung_in_the_bytes_that_are_planned(
    source: Path, made: Callable[[str], Path], name: str, plan: str
) -> None:
    parsed = parse_plan(plan).plan
    if name in KINDS:
        folder = made(name) / "quantised"
        model = ModelConfig.from_dir(folder)
    else:
        folder = source
        model = ModelConfig.from_dir(folder).quantised(WeightFormat(name))
    kept, plain = held(folder, keeping(model), parsed), held(folder, model, parsed)
    generator = torch.Generator().manual_seed(0)
    for mode, rung in ((mode, parsed.rung(mode)) for mode in parsed.modes):
        x = torch.randn(5, 64, generator=generator)
        inner = torch.randn(5, 208, generator=generator)
        for mine, theirs in zip(kept.layers, plain.layers, strict=True):
            _close(mine.qkv(x, mode), theirs.qkv(x, mode))
            _close(mine.gate_up(x, mode), theirs.gate_up(x, mode))
            if rung.tp == 1:
                _close(mine.o(x, mode), theirs.o(x, mode))
                _close(mine.down(inner, mode), theirs.down(inner, mode))
    planned = keeping(model).weight_bytes_per_rank(parsed, DType.FLOAT32)
    assert kept.final_norm is not None
    norms = sum(x.nbytes for layer in kept.layers for x in (layer.input_norm, layer.post_norm))
    assert kept.num_bytes - norms - kept.final_norm.nbytes == planned
    assert planned < 0.6 * model.weight_bytes_per_rank(parsed, DType.FLOAT32)


def _close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("plan", ["tp=1", "tp=2", "sp=2,shift"])
@pytest.mark.parametrize("name", ["fp8-block", "fp8-tensor", "compressed-int8"])
def test_ranks_on_the_device_that_keep_them_answer_as_plain_ones_here(
    made: Callable[[str], Path], name: str, plan: str
) -> None:
    if name == "fp8-block" and plan != "tp=1":
        pytest.skip("its cuts are refused")
    folder = made(name)
    assert_same(answers(folder / "quantised", plan, device="cuda:0"), answers(folder / "plain"))


def changed(folder: Path, copy: Path, name: str, tensor: torch.Tensor | None) -> Path:
    """A copy of a checkpoint with one tensor changed or left out."""
    copy.mkdir()
    tensors = load_file(folder / SINGLE_FILE)
    tensors.pop(name, None)
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, copy / SINGLE_FILE)
    (copy / "config.json").write_text((folder / "config.json").read_text())
    return copy


def opened(folder: Path) -> Checkpoint:
    return Checkpoint(folder, ModelConfig.from_dir(folder), dtype=torch.float32)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (f"{Q_PROJ}.weight_scale", None, rf"tensor {Q_PROJ}\.weight_scale is missing"),
        (f"{Q_PROJ}.weight_scale", torch.ones(7, 1), r"has shape \[7, 1\].* asks for \[64, 1\]"),
        (f"{Q_PROJ}.weight_scale", torch.full((64, 1), torch.nan), "are not finite numbers"),
        (f"{Q_PROJ}.weight_scale", torch.ones(64, 1).to(torch.int8), "weight_scale is in I8"),
        (
            f"{Q_PROJ}.weight",
            torch.ones(64, 64).to(torch.int8),
            r"q_proj\.weight is quantised \(I8",
        ),
        (f"{Q_PROJ}.weight", torch.ones(64, 64), r"q_proj\.weight_scale is not part of"),
        ("model.norm.weight", torch.ones(64).to(torch.float8_e4m3fn), r"norm\.weight is quantised"),
    ],
)
def test_a_tensor_that_does_not_fit_its_scales_is_named(
    made: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    tensor: torch.Tensor | None,
    message: str,
) -> None:
    folder = made("compressed-channel") / "quantised"
    with pytest.raises(CheckpointError, match=message):
        opened(changed(folder, tmp_path / "copy", name, tensor))


def test_values_that_are_no_numbers_are_named(made: Callable[[str], Path], tmp_path: Path) -> None:
    weight = torch.full((64, 64), torch.nan).to(torch.float8_e4m3fn)
    folder = made("compressed-channel") / "quantised"
    checkpoint = opened(changed(folder, tmp_path / "copy", f"{Q_PROJ}.weight", weight))
    with pytest.raises(CheckpointError, match=rf"{Q_PROJ}\.weight has values that are not finite"):
        checkpoint.read(f"{Q_PROJ}.weight", range(3))


def test_a_quantised_head_and_layers_left_plain_are_read_as_they_are(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = made("compressed-channel")
    tensors = load_file(folder / "quantised" / SINGLE_FILE)
    plain = load_file(folder / "plain" / SINGLE_FILE)
    for name in (f"{Q_PROJ}.weight", "model.layers.0.mlp.down_proj.weight"):
        tensors[name] = plain[name]
        del tensors[name.replace(".weight", ".weight_scale")]
    head = quantise(plain["lm_head.weight"], WeightFormat.FP8)
    tensors |= {"lm_head.weight": head.values, "lm_head.weight_scale": head.scales.t().contiguous()}
    save_file(tensors, tmp_path / SINGLE_FILE)
    (tmp_path / "config.json").write_text((folder / "quantised" / "config.json").read_text())
    checkpoint = opened(tmp_path)
    assert torch.equal(checkpoint.read("lm_head.weight", range(259)), head.plain(torch.float32))
    mixed = held(tmp_path, keeping(ModelConfig.from_dir(tmp_path)), ParallelPlan())
    last, first = mixed.layers[1], mixed.layers[0]
    assert [x.dtype for x in last.qkv.tensors] == [torch.float32], "one of its parts is plain"
    assert first.qkv.tensors[0].dtype is torch.float8_e4m3fn
    assert [x.dtype for x in first.down.tensors] == [torch.float32]


def test_cuts_through_blocks_are_refused_with_the_numbers_and_the_way_out(
    made: Callable[[str], Path],
) -> None:
    model = ModelConfig.from_dir(made("fp8-block") / "quantised")
    check_plan(ParallelPlan(tp=2), model)  # they are made plain as they load
    with pytest.raises(PlanError) as error:
        check_plan(ParallelPlan(tp=2), keeping(model))
    assert (
        "mlp.down_proj is quantised in blocks of 32 columns and cut into pieces of 104: only "
        "runs of 8 columns would share a scale, the least is 32; use fewer ranks"
        in str(error.value)
    )
    check_plan(ParallelPlan(), keeping(model))
    check_plan(ParallelPlan(sp=2), keeping(model))
    with pytest.raises(PlanError, match="pieces of 104"):
        check_plan(ParallelPlan(sp=2, shift=True), keeping(model))
    check_plan(ParallelPlan(tp=2), keeping(ModelConfig.from_dir(made("fp8-tensor") / "quantised")))
