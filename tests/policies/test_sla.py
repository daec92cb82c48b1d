"""SLAs in every accepted spelling, and refusals that name the part at fault."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.constraint import Constraint, Metric, Op, Percentile
from policies.errors import PolicyInputError
from policies.sla import Sla

bounds = st.floats(min_value=1e-3, max_value=1e9, allow_nan=False)
latencies = st.builds(
    Constraint,
    metric=st.sampled_from([m for m in Metric if m.is_latency]),
    percentile=st.one_of(st.none(), st.sampled_from(Percentile)),
    bound=bounds,
)
throughputs = st.builds(
    Constraint,
    metric=st.sampled_from([Metric.THROUGHPUT, Metric.THROUGHPUT_TOTAL]),
    bound=bounds,
)
attainments = st.builds(
    Constraint,
    metric=st.just(Metric.ATTAINMENT),
    bound=st.floats(min_value=1e-6, max_value=1.0, allow_nan=False),
)
slas = st.lists(
    st.one_of(latencies, throughputs, attainments), min_size=1, unique_by=lambda c: c.key
).map(lambda constraints: Sla(constraints=tuple(constraints)))


def test_our_own_syntax_reads_latencies_attainment_and_throughput() -> None:
    sla = Sla.parse("p95_ttft_ms<=500, mean_tpot_ms <= 50, attainment>=0.99")
    assert [c.key for c in sla.constraints] == ["p95_ttft_ms", "mean_tpot_ms", "attainment"]
    assert [c.bound for c in sla.constraints] == [500, 50, 0.99]
    assert [c.op for c in sla.constraints] == [Op.AT_MOST, Op.AT_MOST, Op.AT_LEAST]
    assert sla.attainment_bound == 0.99


def test_vllms_json_form_reads_its_own_names() -> None:
    text = '{"p99_e2el_ms": "<=500", "median_ttft_ms": 90, "output_throughput": ">=1000"}'
    assert str(Sla.parse(text)) == "p99_e2e_ms<=500,p50_ttft_ms<=90,throughput_tokens_per_s>=1000"


def test_guidellms_form_binds_every_request() -> None:
    sla = Sla.parse("ttft:500 tpot:50")
    assert str(sla) == "ttft_ms<=500,tpot_ms<=50"
    assert all(c.percentile is None and c.is_per_request for c in sla.constraints)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("p95_ttft<=500ms", "p95_ttft_ms<=500"),
        ("p95_ttft <= 0.5 s; tpot<=40 MS", "p95_ttft_ms<=500,tpot_ms<=40"),
        ("p95_ttft_s<=0.29", "p95_ttft_ms<=290"),
        ("p99_e2el:2s", "p99_e2e_ms<=2000"),
        ("p95_ttft_ms<=0.5s", "p95_ttft_ms<=500"),
        ('{"p95_ttft": "<=500ms"}', "p95_ttft_ms<=500"),
        ("attainment>=99.9%", "attainment>=0.999"),
        ("throughput>=1000", "throughput_tokens_per_s>=1000"),
    ],
)
def test_units_may_stand_at_the_name_or_the_number(text: str, same: str) -> None:
    assert Sla.parse(text) == Sla.parse(same)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("tfft", "ttft_ms"),
        ("p95_tfft", "p95_ttft_ms"),
        ("p95_tpto_ms", "p95_tpot_ms"),
        ("p96_ttft_s", "p95_ttft_ms"),
        ("p99.9_ttft_ms", "p99_ttft_ms"),
        ("attainmnt", "attainment"),
        ("median_itll", "p50_itl_ms"),
    ],
)
def test_a_wrong_name_suggests_the_nearest_right_one(wrong: str, right: str) -> None:
    with pytest.raises(PolicyInputError, match=rf"{wrong}.*did you mean '{right}'"):
        Sla.parse(f"{wrong}<=5")


def test_a_name_like_no_other_suggests_nothing() -> None:
    with pytest.raises(PolicyInputError) as caught:
        Sla.parse("zzz<=5")
    assert "did you mean" not in str(caught.value)


def test_a_mean_holds_no_single_request() -> None:
    assert Sla.parse("mean_ttft_ms<=5,attainment>=0.9").per_request == ()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("p95_ttft_ms<500", "'<'"),
        ("p95_ttft_ms>=500", "takes <="),
        ("attainment<=0.9", "takes >="),
        ("p95_latency_ms<=3", "'p95_latency_ms'"),
        ("p96_ttft_ms<=3", "'p96_ttft_ms'"),
        ("p95_ttft_ms<=fast", "'fast'"),
        ("p95_ttft<=500min", "'500min' is not a number"),
        ("p95_ttft<=ms", "'ms' is not a number"),
        ("attainment>=5ms", "no unit 'ms'"),
        ("p95_ttft<=5%", "no unit '%'"),
        ("throughput>=5s", "no unit 's'"),
        ("p95_ttft_ms", "'p95_ttft_ms'"),
        ("p95_ttft_ms<=500,,", "empty part"),
        ("", "empty part"),
        ("attainment>=99", "0.99 for 99 %"),
        ("attainment_ms>=0.9", "'attainment_ms'"),
        ("p95_attainment>=0.9", "only latencies"),
        ("ttft:-1", "above 0"),
        ("ttft:nan", "above 0"),
        ("ttft:1,ttft_ms<=2", "twice"),
        ("{bad", "JSON"),
        ('{"p99_ttft_ms": [1]}', "'p99_ttft_ms'"),
        ('{"p99_ttft_ms": "<=1", "p99_ttft_ms": "<=2"}', "twice"),
        ("{}", "at least one"),
        ('{"p95_ttft_ms": ' + "[" * 3000, "not readable as JSON"),
        ("p95_ttft_ms<=1," * 300, "4500 characters; at most 4096"),
    ],
)
def test_an_sla_that_does_not_parse_names_the_part(text: str, part: str) -> None:
    with pytest.raises(PolicyInputError, match=part.replace("(", r"\(")):
        Sla.parse(text)


@settings(deadline=None)
@given(slas)
def test_what_is_written_reads_back_the_same(sla: Sla) -> None:
    assert Sla.parse(str(sla)) == sla


@settings(deadline=None)
@given(slas)
def test_the_json_form_says_the_same_as_ours(sla: Sla) -> None:
    text = json.dumps({c.key: f"{c.op}{c.bound!r}" for c in sla.constraints})
    assert Sla.parse(text) == sla


@settings(deadline=None)
@given(slas, st.sampled_from(["", " "]), st.data())
def test_the_same_sla_in_any_unit_reads_the_same(sla: Sla, gap: str, data: st.DataObject) -> None:
    def written(constraint: Constraint) -> str:
        if not constraint.metric.is_latency:
            return str(constraint)
        name = constraint.key.removesuffix("_ms")
        unit, factor = data.draw(st.sampled_from([("ms", 1), ("s", 1000)]))
        number = repr(constraint.bound / factor)
        return data.draw(
            st.sampled_from([f"{name}<={number}{gap}{unit}", f"{name}_{unit}<={number}"])
        )

    read = Sla.parse(",".join(map(written, sla.constraints)))
    assert [c.key for c in read.constraints] == [c.key for c in sla.constraints]
    for ours, theirs in zip(read.constraints, sla.constraints, strict=True):
        assert ours.bound == pytest.approx(theirs.bound, rel=1e-12)


@settings(deadline=None)
@given(st.text(max_size=30) | st.text(alphabet="p95_tfms<=>:.%s, 0e-", max_size=30))
def test_any_other_text_is_refused_and_never_crashes(text: str) -> None:
    with contextlib.suppress(PolicyInputError):
        assert Sla.parse(text).constraints


@settings(deadline=None)
@given(slas, st.floats(min_value=0, max_value=1e9))
def test_the_margin_is_negative_exactly_when_the_bound_is_missed(sla: Sla, actual: float) -> None:
    for constraint in sla.constraints:
        share = min(actual, 1.0) if constraint.metric is Metric.ATTAINMENT else actual
        assert (constraint.margin(share) >= -1e-12) == constraint.is_met_by(share) or (
            abs(share - constraint.bound) <= 1e-9 * constraint.bound
        )
