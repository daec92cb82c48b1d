from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from policies.sla import Sla
from tests.tuner.pictures.pages import names, read_page
from tuner.pictures.draw import draw
from tuner.pictures.picture import (
    Area,
    Axis,
    Band,
    Cloud,
    Colour,
    Limit,
    Line,
    Panel,
    Picture,
    Point,
    Symbol,
    axis_over,
)
from tuner.spec.errors import TunerError

SLA = Sla.parse("p95_ttft_ms<=500,attainment>=0.9")
X = (0.0, 1.0, 2.0)
PICTURE = Picture(
    title="a $5 & a <b>",
    facts=("workload poisson:rate=2", f"SLA {SLA}; seed 7"),
    panels=(
        Panel(
            x=Axis(label="time, s", low=0, high=2),
            y=axis_over("TTFT, ms", (1.0, 2.0, 900.0), limits=(500.0,)),
            lines=(Line(label="p95 TTFT", x=X, y=(1.0, None, 900.0), colour=Colour.BLUE),),
            limits=(Limit.of(SLA.constraints[0]),),
            bands=(Band(label="interval", low=5.0, high=8.0, colour=Colour.PURPLE),),
            x_group="time",
        ),
        Panel(
            x=Axis(label="time, s", low=0, high=2),
            y=Axis(label="share", low=0, high=1),
            areas=(Area(label="base", x=X, y=(0.5, 1.0, 0.0), colour=Colour.SKY),),
            x_group="time",
        ),
        Panel(
            x=Axis(label="devices", low=0, high=3, is_whole=True),
            y=Axis(label="TPOT, ms", low=0, high=30),
            clouds=(
                Cloud(
                    label="candidates",
                    points=(
                        Point(x=1.0, y=20.0, y_ends=(15.0, 26.0), texts=("tp=1", "P 0.9")),
                        Point(x=2.0, y=10.0, texts=("tp=2", "P <1")),
                    ),
                    colour=Colour.GREEN,
                    symbol=Symbol.CROSS,
                ),
            ),
        ),
    ),
)


@pytest.mark.parametrize("suffix", ["svg", "html", "png", "pdf"])
def test_the_same_picture_is_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    files = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for file in files:
        draw(file, PICTURE)
    first, second = (file.read_bytes() for file in files)
    assert first == second
    assert len(first) > 5_000


def test_a_still_has_title_facts_units_legends_and_bounds(tmp_path: Path) -> None:
    file = tmp_path / "x.svg"
    draw(file, PICTURE)
    text = file.read_text()
    for part in (
        "a $5 &amp; a &lt;b&gt;",
        "workload poisson:rate=2",
        "SLA p95_ttft_ms&lt;=500,attainment&gt;=0.9; seed 7",
        "TTFT, ms (log axis)",
        "SLA p95_ttft_ms&lt;=500",
        "interval",
        "candidates",
        "TPOT, ms",
    ):
        assert f">{part}</text>" in text, part


def test_a_page_holds_the_same_and_what_hovering_tells_and_loads_nothing(tmp_path: Path) -> None:
    file = tmp_path / "x.html"
    draw(file, PICTURE)
    data, layout = read_page(file)
    assert names(data) == ("interval; p95 TTFT; SLA p95_ttft_ms&lt;=500; base; candidates")
    title = layout["title"]["text"]
    assert "<b>a $5 &amp; a &lt;b&gt;</b>" in title
    assert "SLA p95_ttft_ms&lt;=500,attainment&gt;=0.9; seed 7" in title
    bound = next(trace for trace in data if trace["name"].startswith("SLA"))
    assert bound["y"] == [500, 500]
    assert next(t for t in data if t["name"] == "p95 TTFT")["y"] == [1.0, None, 900.0]
    candidates = data[-1]
    assert candidates["text"] == ["tp=1<br>P 0.9", "tp=2<br>P &lt;1"]
    assert candidates["error_y"]["array"] == [6.0, 0.0]
    assert layout["yaxis"]["type"] == "log"
    assert layout["yaxis2"]["type"] == "linear"
    assert layout["xaxis2"]["matches"] == "x"
    assert "matches" not in layout["xaxis3"]
    assert all(layout[f"legend{n}"]["x"] > 1 for n in ("", "2", "3"))


def test_plotly_knows_everything_that_is_asked_of_it() -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects")
    from tuner.pictures.page import figure_of

    graph_objects.Figure(**figure_of(PICTURE))


def test_a_script_in_a_name_stays_text(tmp_path: Path) -> None:
    file = tmp_path / "x.html"
    draw(file, replace(PICTURE, facts=("</script><script>alert(1)</script>",)))
    _, layout = read_page(file)
    assert "&lt;script&gt;alert(1)" in layout["title"]["text"]


def test_a_log_axis_is_taken_where_a_burst_hides_the_rest() -> None:
    assert not axis_over("x", (10.0, 12.0, 100.0)).is_log
    burst = axis_over("x", (0.0, 10.0, 12.0, 9.0, 5000.0))
    assert burst.is_log
    assert burst.low < 9
    assert burst.high > 5000
    assert axis_over("x", (None, float("inf"))).high > 0
    assert axis_over("x", (1.0, 2.0), limits=(500.0,)).is_log
    assert axis_over("x", (30.0, 40.0), limits=(1.0,)).is_log


def test_another_kind_of_file_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(TunerError, match=r"\.html, \.svg, \.png, \.pdf"):
        draw(tmp_path / "x.gif", PICTURE)
