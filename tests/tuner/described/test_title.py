from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.spec.model import DType
from policies.sla import Sla
from tuner.described.parse import describe_node
from tuner.described.title import WIDTH, Asked, Title
from tuner.spec.machine import Fingerprint
from tuner.workload.parse import parse_workload

SPEC = "poisson:rate=4,input=512,output=64,requests=9"
MACHINE = Fingerprint(cpu_model="AMD EPYC", num_cores=2, torch_version="2.13.0+cpu")


def asked(model: str = "llama-3.1-8b", sla: str | None = "p95_ttft_ms<=500") -> Asked:
    return Asked(
        model=model,
        workload=parse_workload(SPEC, seed=7),
        sla=None if sla is None else Sla.parse(sla),
        seed=7,
    )


def test_a_title_names_everything_that_the_answer_hangs_on() -> None:
    node = describe_node(model="llama-3.1-8b", hardware="8xh200", dtype="fp8")
    lines = Title.of_node(node, asked()).lines()
    assert lines == [
        "llama-3.1-8b in fp8 on 8xh200, served by vllm@0.14 (profile version "
        f"{node.backend.version})",
        f"workload {SPEC}",
        "SLA p95_ttft_ms<=500; seed 7",
    ]


def test_on_this_machine_the_engine_is_ours_with_its_version() -> None:
    title = str(Title.of_machine(MACHINE, DType.FLOAT32, asked("./model", sla=None)))
    assert "./model in fp32 on this machine (AMD EPYC, 2 cores" in title
    assert "served by gearshift 0." in title
    assert title.endswith("no SLA; seed 7")


def test_weights_that_ranks_quantised_are_named_and_plain_ones_are_not() -> None:
    def begins(weights: str | None) -> str:
        title = Title.of_machine(MACHINE, DType.BFLOAT16, asked("m"), weights=weights)
        return str(title).partition(" on this")[0]

    assert begins("w8a8") == "m in bf16 with w8a8 weights"
    assert begins("plain") == begins(None) == "m in bf16"


@given(model=st.text(alphabet="a/ ,-", min_size=1, max_size=300))
def test_no_line_of_a_title_is_too_wide_and_no_letter_is_lost(model: str) -> None:
    title = Title.of_machine(MACHINE, DType.FLOAT32, asked(model))
    lines = title.lines()
    assert max(map(len, lines)) <= WIDTH
    shown, whole = "".join(lines), str(title).replace("; ", "")
    assert shown.replace(" ", "").replace(";", "") == whole.replace(" ", "").replace(";", "")
