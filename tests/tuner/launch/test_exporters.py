"""Every exporter's command, parsed as a shell would, for many plans."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from importlib.resources import files

import pytest

from engine.spec.plan import parse_plan
from engine.spec.settings import Caps, Settings
from policies.sla import Sla
from tuner.backends import load_backend
from tuner.described.launch import node_commands
from tuner.described.node import Node
from tuner.described.parse import describe_node
from tuner.described.queue_limit import queued_tokens
from tuner.hardware import Precision, parse_hardware
from tuner.launch.command import Exporter, LaunchCommand, Served, System
from tuner.launch.commands import EXPORTERS, launch_commands
from tuner.work.models import find_checkpoint, find_model, list_models, load_model
from tuner.workload.parse import parse_workload

PUBLISHED = "meta-llama/Llama-3.1-70B-Instruct"
PLANS = (
    "tp=1",
    "tp=2",
    "tp=8",
    "pp=2,tp=4",
    "pp=8",
    "dp=2,tp=4",
    "dp=8",
    "dp=2,pp=2,tp=2",
    "sp=8",
    "sp=4,tp=2",
    "sp=8,shift=512",
    "dp=2,sp=2,tp=2,shift=300",
    "pp=2,sp=4",
)
OTHERS = (System.VLLM, System.ARCTIC, System.SGLANG, System.TRTLLM)
# Flag of each plan axis, context and caps; TensorRT-LLM has no flag for dp.
NAMES = {
    System.VLLM: {
        "tp": "--tensor-parallel-size",
        "pp": "--pipeline-parallel-size",
        "dp": "--data-parallel-size",
        "seqs": "--max-num-seqs",
        "tokens": "--max-num-batched-tokens",
        "context": "--max-model-len",
    },
    System.SGLANG: {
        "tp": "--tp-size",
        "pp": "--pp-size",
        "dp": "--dp-size",
        "seqs": "--max-running-requests",
        "tokens": "--chunked-prefill-size",
        "context": "--context-length",
    },
    System.TRTLLM: {
        "tp": "--tp_size",
        "pp": "--pp_size",
        "seqs": "--max_batch_size",
        "tokens": "--max_num_tokens",
        "context": "--max_seq_len",
    },
}
NAMES[System.ARCTIC] = {**NAMES[System.VLLM], "sp": "--ulysses-sequence-parallel-size"}


def settings_of(plan: str) -> Settings:
    spec = parse_plan(plan)
    caps = Caps(max_num_seqs=96, max_num_batched_tokens=2048)
    return Settings(plan=spec.plan, threshold_tokens=spec.threshold_tokens or 256, caps=caps)


def options(command: str) -> dict[str, str | None]:
    """Flags and values of a command; a switch has None."""
    found: dict[str, str | None] = {}
    words = shlex.split(command)
    for at, word in enumerate(words):
        if word.startswith("--"):
            after = words[at + 1] if at + 1 < len(words) else "--"
            found[word] = None if after.startswith("--") else after
    return found


def by_system(plan: str, served: Served) -> dict[System, LaunchCommand]:
    return {each.system: each for each in launch_commands(settings_of(plan), served)}


SERVED = Served(precision=Precision.BF16, checkpoint=PUBLISHED, max_model_len=4096)


@pytest.mark.parametrize("system", OTHERS)
@pytest.mark.parametrize("plan", PLANS)
def test_a_command_says_every_part_of_the_settings_or_the_reason(plan: str, system: System) -> None:
    found = by_system(plan, SERVED)[system]
    parsed = settings_of(plan).plan
    if parsed.sp > 1 and system is not System.ARCTIC:
        assert found.command is None
        assert f"sp={parsed.sp}" in str(found.note)
        return
    if parsed.pp > 1 and system is System.ARCTIC:
        assert found.command is None
        assert f"pp={parsed.pp}" in str(found.note)
        return
    assert found.command is not None
    assert PUBLISHED in shlex.split(found.command)
    assert found.versions
    given, names = options(found.command), NAMES[system]
    assert given[names["tp"]] == str(parsed.tp)
    for axis in ("pp", "dp", "sp"):
        size = getattr(parsed, axis)
        if axis in names:
            assert given.get(names[axis]) == (str(size) if size > 1 else None)
    assert (given[names["seqs"]], given[names["tokens"]]) == ("96", "2048")
    assert (given[names["context"]], given["--port"]) == ("4096", "8000")


@pytest.mark.parametrize("plan", PLANS)
def test_every_flag_is_in_the_exporters_table_and_in_the_published_list(plan: str) -> None:
    for precision in (Precision.BF16, Precision.FP8):
        for keeps_prefixes in (False, True):
            served = Served(precision=precision, max_model_len=99, keeps_prefixes=keeps_prefixes)
            for exporter in EXPORTERS[1:]:
                found = exporter.export(settings_of(plan), served)
                assert set(options(str(found.command))) <= set(exporter.flags), found.command


@pytest.mark.parametrize("exporter", EXPORTERS[1:], ids=lambda exporter: exporter.system.value)
def test_every_flag_of_a_table_is_published(exporter: Exporter) -> None:
    system = exporter.system
    folder = files("tuner.launch") / "arguments"
    names = [system.value] if system is not System.ARCTIC else ["vllm", "arctic"]
    published: set[str] = set()
    for name in names:
        document = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        assert document["version"]
        assert document["source"]
        published |= set(document["arguments"])
    assert set(exporter.flags) <= published


def on_h100s(
    plan: str, model: str, *, precision: Precision = Precision.BF16, **changes: object
) -> dict[System, LaunchCommand]:
    node = Node(
        hardware=parse_hardware("8xh100"),
        model=load_model("llama-3.1-70b"),
        precision=precision,
        backend=load_backend("vllm"),
        **changes,
    )
    longest = 1000
    found = node_commands(node, settings_of(plan), model=model, longest_tokens=longest)
    assert found[0].system is System.VLLM
    return {each.system: each for each in found}


def test_a_context_that_the_kv_cache_cannot_hold_is_cut_and_says_so() -> None:
    for system, found in on_h100s("tp=2", PUBLISHED).items():
        if found.command is None or system is System.GEARSHIFT:
            continue
        context = int(str(options(found.command)[NAMES[system]["context"]]))
        assert 1000 <= context < 40_000
        assert f"context cut to {context} of 131072 tokens" in str(found.note)


def test_a_context_that_fits_is_left_as_the_models_own() -> None:
    found = on_h100s("tp=8", PUBLISHED)[System.VLLM]
    assert "--max-model-len" not in str(found.command)
    assert found.note is None


def test_memory_is_shared_out_as_it_was_simulated() -> None:
    found = on_h100s("tp=4", PUBLISHED)
    shares = {
        System.VLLM: options(str(found[System.VLLM].command))["--gpu-memory-utilization"],
        System.SGLANG: options(str(found[System.SGLANG].command))["--mem-fraction-static"],
    }
    usable = parse_hardware("8xh100").device
    share = usable.usable_bytes / usable.memory_bytes
    assert share - 0.002 < float(str(shares[System.VLLM])) <= share
    # Steps take the rest of what is usable.
    assert 0.5 < float(str(shares[System.SGLANG])) < float(str(shares[System.VLLM]))
    config = found[System.TRTLLM].config
    assert config is not None
    assert config.is_needed
    assert "enable_block_reuse: true\n  free_gpu_memory_fraction: 0." in config.text


@pytest.mark.parametrize(
    ("choice", "flag"),
    [
        ("vllm@0.12", "--no-async-scheduling"),
        ("vllm,async_scheduling=off", "--no-async-scheduling"),
        ("vllm@0.12,async_scheduling=on", None),
        ("vllm,prefix_cache=off", "--no-enable-prefix-caching"),
        ("vllm", "--enable-prefix-caching"),
    ],
)
def test_what_was_simulated_besides_the_defaults_is_in_vllms_command(
    choice: str, flag: str | None
) -> None:
    node = describe_node(model="llama-3.1-70b", hardware="8xh100", backend=choice)
    found = node_commands(node, settings_of("tp=8"), model=PUBLISHED)
    words = str(found[0].command).split()
    assert found[0].system is System.VLLM
    assert flag is None or flag in words
    assert ("--no-async-scheduling" in words) == (flag == "--no-async-scheduling")


def test_sglang_is_started_as_its_steps_were_simulated() -> None:
    def words(backend: str) -> list[str]:
        node = describe_node(model="llama-3.1-70b", hardware="8xh100", backend=backend)
        found = node_commands(node, settings_of("tp=8"), model=PUBLISHED)
        return next(str(c.command) for c in found if c.system is System.SGLANG).split()

    assert "--enable-mixed-chunk" in words("vllm")
    assert "--enable-mixed-chunk" not in words("sglang")


def test_a_name_of_ours_is_served_from_what_its_publisher_offers_and_the_note_says_so() -> None:
    found = on_h100s("tp=8", "llama-3.1-70b")
    for system in (System.VLLM, System.SGLANG, System.TRTLLM):
        assert PUBLISHED in str(found[system].command).split()
        assert f"{PUBLISHED} stands for llama-3.1-70b: name yours" in str(found[system].note)
    # Our engine loads folders only.
    assert "MODEL is a checkpoint of llama-3.1-70b" in str(found[System.GEARSHIFT].note)


def test_nobody_publishes_the_four_bit_weights_of_a_name() -> None:
    found = on_h100s("tp=8", "llama-3.1-70b", precision=Precision.INT4)
    assert "vllm serve MODEL " in str(found[System.VLLM].command)
    assert "MODEL is a checkpoint of llama-3.1-70b" in str(found[System.VLLM].note)


@pytest.mark.parametrize("name", list_models())
def test_what_stands_for_a_name_is_of_its_shape(name: str) -> None:
    found = find_checkpoint(name)
    assert found is not None
    assert find_model(found) == find_model(name)


def test_vllms_config_file_says_what_its_command_says() -> None:
    found = by_system("dp=2,tp=4", SERVED)[System.VLLM]
    assert found.config is not None
    assert found.config.command == "vllm serve --config vllm.yml"
    lines = dict(line.split(": ") for line in found.config.text.splitlines())
    assert json.loads(lines.pop("model")) == PUBLISHED
    said = {
        f"--{name}": None if value == "true" else value.strip('"') for name, value in lines.items()
    }
    assert said == options(str(found.command))


def test_combinations_that_a_system_does_not_document_carry_the_caveat() -> None:
    found = by_system("dp=2,pp=2,tp=2", SERVED)
    assert "documents data parallelism beside tensor parallelism only" in str(
        found[System.VLLM].note
    )
    assert "--enable-mixed-chunk" not in str(found[System.SGLANG].command)
    assert "does not mix prompts and decodes" in str(found[System.SGLANG].note)
    assert "one of dp=2 replicas" in str(found[System.TRTLLM].note)
    assert "--enable-mixed-chunk" in str(by_system("tp=8", SERVED)[System.SGLANG].command)


def test_the_queue_limit_is_told_for_the_versions_that_have_it() -> None:
    found = by_system("tp=8", replace(SERVED, queued_tokens=50_000))
    assert "from vllm 0.29 on, --max-num-queued-tokens 50000" in str(found[System.VLLM].note)
    assert "--max-num-queued-tokens" not in str(found[System.VLLM].command)
    assert "queued" not in str(found[System.SGLANG].note)


def test_prompts_that_may_wait_grow_with_the_ttft_bound_and_the_replicas() -> None:
    node = Node(
        hardware=parse_hardware("8xh100"),
        model=load_model("llama-3.1-8b"),
        precision=Precision.BF16,
        backend=load_backend("vllm"),
    )
    workload = parse_workload("gamma:rate=10,cv=2,input=600,output=16,requests=40", seed=0)

    def tokens(plan: str, sla: str) -> int:
        found = queued_tokens(node, settings_of(plan), workload, Sla.parse(sla))
        assert found is not None
        return found

    one = tokens("tp=1", "p95_ttft_ms<=2000")
    assert 2 * 10_000 < one < 2 * 100_000  # an H100 prefills tens of thousands of tokens a second
    assert tokens("tp=1", "p95_ttft_ms<=4000") == pytest.approx(2 * one, abs=2)
    assert tokens("dp=4", "p95_ttft_ms<=2000") == pytest.approx(4 * one, abs=4)
    assert tokens("tp=1", "p95_ttft_ms<=1") == int(workload.input_tokens.max())
    none = queued_tokens(node, settings_of("tp=1"), workload, Sla.parse("p95_tpot_ms<=50"))
    assert none is None


def test_the_prefix_cache_is_on_where_it_was_on_in_the_simulation() -> None:
    served = Served(precision=Precision.BF16, keeps_prefixes=True)
    found = by_system("tp=8", served)
    assert "--enable-prefix-caching" in options(str(found[System.VLLM].command))
    assert "--disable-radix-cache" not in options(str(found[System.SGLANG].command))
    config = found[System.TRTLLM].config
    assert config is not None
    assert "enable_block_reuse: true" in config.text
