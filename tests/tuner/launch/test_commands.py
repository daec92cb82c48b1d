from __future__ import annotations

from dataclasses import replace

import pytest

from engine.spec.modes import SHIFT, Mode, ModePin
from engine.spec.plan import parse_plan
from engine.spec.quantisation import WeightFormat
from engine.spec.settings import Caps, Settings
from tuner.hardware import KvFormat, Precision
from tuner.launch.command import LaunchCommand, Served, System
from tuner.launch.commands import launch_commands
from tuner.launch.gearshift import ServedHere, launch_here

CAPS = Caps(max_num_seqs=128, max_num_batched_tokens=4096)


def commands(
    plan: str,
    precision: Precision = Precision.BF16,
    *,
    backend: str = "gearshift",
    caps: Caps = CAPS,
) -> dict[System, LaunchCommand]:
    spec = parse_plan(plan)
    settings = Settings(
        plan=spec.plan,
        threshold_tokens=spec.threshold_tokens or 256,
        rung_thresholds=spec.rung_thresholds,
        caps=caps,
    )
    served = Served(precision=precision, backend=backend, hardware="8xh200", max_model_len=8192)
    found = launch_commands(settings, served)
    return {command.system: command for command in found}


def test_every_system_gets_its_own_words_for_the_same_settings() -> None:
    found = commands("dp=2,pp=2,tp=2")
    assert found[System.GEARSHIFT].command == (
        "gearshift engine serve --model MODEL --plan dp=2,pp=2,tp=2 --max-num-seqs 128 "
        "--max-num-batched-tokens 4096 --max-model-len 8192 --dtype bfloat16 --device cuda"
    )
    assert found[System.VLLM].command == (
        "vllm serve MODEL --tensor-parallel-size 2 --pipeline-parallel-size 2 "
        "--data-parallel-size 2 --max-num-seqs 128 --max-num-batched-tokens 4096 "
        "--max-model-len 8192 --no-enable-prefix-caching --port 8000 --dtype bfloat16"
    )
    assert found[System.SGLANG].command == (
        "python -m sglang.launch_server --model-path MODEL --tp-size 2 --pp-size 2 --dp-size 2 "
        "--max-running-requests 128 --chunked-prefill-size 4096 --context-length 8192 "
        "--disable-radix-cache --port 8000 --dtype bfloat16"
    )


def test_shift_is_arctics_with_the_threshold_that_was_found() -> None:
    command = commands("sp=4,tp=2,shift=640")[System.ARCTIC].command
    assert command is not None
    assert command.startswith(
        "ARCTIC_INFERENCE_ENABLED=1 vllm serve MODEL --tensor-parallel-size 2"
    )
    assert command.endswith(
        "--ulysses-sequence-parallel-size 4 --enable-shift-parallel --shift-parallel-threshold 640"
    )


@pytest.mark.parametrize(
    ("plan", "system", "reason"),
    [
        ("sp=8", System.VLLM, "no sequence parallelism"),
        ("sp=8,shift=512", System.SGLANG, "no sequence parallelism"),
        ("pp=2,sp=4", System.ARCTIC, "no pipeline parallelism"),
    ],
)
def test_a_plan_that_a_system_cannot_run_gets_the_reason_not_another_plan(
    plan: str, system: System, reason: str
) -> None:
    found = commands(plan)[system]
    assert found.command is None
    assert reason in str(found.note)


def test_fp8_is_a_quantization_elsewhere_and_paced_here() -> None:
    found = commands("tp=8", Precision.FP8)
    assert "--dtype bfloat16 --quantization fp8" in str(found[System.VLLM].command)
    assert str(found[System.GEARSHIFT].command).endswith("--dtype fp8 --paced 8xh200")
    assert "do not compute in fp8" in str(found[System.GEARSHIFT].note)


def test_a_command_that_runs_no_model_comes_last_and_is_told_apart() -> None:
    words = (Precision.FP8, Precision.BF16)
    fp8, bf16 = (list(commands("tp=8", precision).values()) for precision in words)
    assert [command.is_rehearsal for command in fp8] == [False, False, False, False, True]
    assert fp8[-1].system is System.GEARSHIFT
    assert fp8[-1].to_json()["is_rehearsal"] is True
    assert [command.system for command in bf16] == list(System)
    assert not any(command.is_rehearsal for command in bf16)


def test_shift_here_names_its_threshold() -> None:
    assert "--plan sp=8,shift=512 " in str(commands("sp=8,shift=512")[System.GEARSHIFT].command)


def test_rungs_are_ours_and_other_systems_say_that_they_have_none() -> None:
    found = commands("sp=8,shift=512,2x4=900")
    assert "--plan sp=8,shift=512,2x4=900 " in str(found[System.GEARSHIFT].command)
    arctic = found[System.ARCTIC]
    assert str(arctic.command).endswith("--shift-parallel-threshold 512")
    assert "no rungs between base and shift: steps that were simulated on 2x4 run in base" in str(
        arctic.note
    )
    for system in (System.VLLM, System.SGLANG, System.TRTLLM):
        assert found[system].command is None
        assert "so no rungs of a ladder either" in str(found[system].note)
    assert "rungs" not in str(commands("sp=8,shift=512")[System.ARCTIC].note)


def test_a_pin_and_a_restriction_are_words_of_our_command() -> None:
    plan = parse_plan("sp=8,shift=512").plan
    settings = Settings(plan=plan, rungs=(Mode("4x2"), SHIFT), pin=ModePin("4x2"), caps=CAPS)
    command = str(launch_here(settings, HERE).command)
    assert "--rungs 4x2,shift --mode 4x2 " in command


def test_a_command_under_numbers_of_another_system_says_whose_they_are() -> None:
    found = commands("tp=8", backend="vllm")
    assert found[System.VLLM].note is None
    arctic, sglang = found[System.ARCTIC].note, found[System.SGLANG].note
    assert arctic == "numbers above are of vllm; simulate with --backend arctic to see its own"
    assert sglang == "numbers above are of vllm; simulate with --backend sglang to see its own"
    assert "--backend gearshift" in str(found[System.GEARSHIFT].note)
    assert commands("tp=8")[System.GEARSHIFT].note is None
    shift = commands("sp=8,shift=512")[System.ARCTIC].note
    assert "weights of both modes; numbers above are of gearshift" in str(shift)


def test_a_paced_engine_is_paced_as_the_backend_that_the_numbers_are_of() -> None:
    found = commands("tp=8", Precision.FP8, backend="vllm")
    assert str(found[System.GEARSHIFT].command).endswith("--paced 8xh200 --backend vllm")


def test_caps_that_a_system_refuses_to_start_with_get_no_command() -> None:
    found = commands("tp=8", caps=Caps(max_num_seqs=512, max_num_batched_tokens=256))
    for system in (System.VLLM, System.ARCTIC):
        assert found[system].command is None
        assert "max_num_batched_tokens=256 below max_num_seqs=512" in str(found[system].note)
    assert found[System.GEARSHIFT].command is not None


def test_a_quantised_checkpoint_is_started_without_a_flag_for_it() -> None:
    """AWQ and GPTQ checkpoints say so themselves; no rank here computes with them."""
    found = commands("tp=2", Precision.INT4)
    for system in (System.VLLM, System.SGLANG):
        command = found[system].command
        assert command is not None
        assert command.endswith("--dtype bfloat16")
        assert found[system].note is not None
        assert "an AWQ or GPTQ checkpoint" in str(found[system].note)
    paced = found[System.GEARSHIFT]
    assert paced.command is not None
    assert "--dtype int4 --paced 8xh200" in paced.command


def test_block_scaled_checkpoints_say_so_themselves_and_no_flag_makes_them() -> None:
    found = commands("tp=2", Precision.FP8_BLOCK)[System.VLLM]
    assert "--quantization" not in str(found.command)
    assert "a scale per block of 128x128 weights" in str(found.note)


def test_keys_and_values_in_fp8_are_asked_for_in_each_systems_words() -> None:
    served = Served(precision=Precision.FP8, hardware="8xh200", kv=KvFormat.FP8)
    settings = Settings(plan=parse_plan("tp=2").plan, caps=CAPS)
    found = {command.system: command for command in launch_commands(settings, served)}
    assert " --kv-cache-dtype fp8 " in str(found[System.VLLM].command)
    assert " --kv-cache-dtype fp8_e4m3 " in str(found[System.SGLANG].command)
    config = found[System.TRTLLM].config
    assert config is not None
    assert "kv_cache_config:\n  enable_block_reuse: false\n  dtype: fp8\n" in config.text


HERE = ServedHere(
    model="./my model", dtype="float32", device="cpu", kv_cache_mib=256, block_size=16
)


def test_an_engine_here_is_started_as_its_trials_were_with_threshold_and_every_cap() -> None:
    spec = parse_plan("sp=2,shift=212")
    settings = Settings(plan=spec.plan, threshold_tokens=212, caps=CAPS)
    found = launch_here(settings, replace(HERE, link="gbps=1"), max_model_len=512)
    assert found.command == (
        "gearshift engine serve --model './my model' --plan sp=2,shift=212 --max-num-seqs 128 "
        "--max-num-batched-tokens 4096 --max-model-len 512 --dtype float32 --device cpu "
        "--kv-cache-mib 256 --block-size 16 --link gbps=1"
    )


def test_an_engine_here_quantises_as_its_trials_did() -> None:
    found = launch_here(Settings(), replace(HERE, quantization=WeightFormat.W8A8))
    assert str(found.command).endswith(" --quantization w8a8")


def test_the_longest_step_is_a_flag_where_it_is_set() -> None:
    caps = replace(CAPS, max_step_ms=45.0)
    found = launch_here(Settings(plan=parse_plan("tp=2").plan, caps=caps), HERE)
    assert "--max-step-ms 45 " in str(found.command)
