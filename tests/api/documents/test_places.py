"""Where files named in jobs may lie: by their text, and then by where they really lead."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from api.documents import places
from api.documents.places import Places, is_name
from api.web.settings import ServiceSettings
from tests.api.conftest import MODEL_CONFIG
from tuner.search.spec import TuningSpec
from tuner.spec.errors import TunerError


@pytest.fixture
def found(tmp_path: Path) -> Places:
    """Two folders of models, one of traces, beside a secret."""
    for name in ("models/tiny", "more/other", "traces"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("models/tiny", "more/other"):
        (tmp_path / name / "config.json").write_text(json.dumps(MODEL_CONFIG))
    (tmp_path / "traces" / "a,b.csv").write_text("arrival_s,input_tokens,output_tokens\n0,5,6\n")
    (tmp_path / "secret.csv").write_text("secret")
    return ServiceSettings(
        data_dir=tmp_path, model_root=f"{tmp_path / 'models'}:{tmp_path / 'more'}"
    ).places


def _spec(model: str | Path = "tiny", trace: str | Path = "a,b.csv") -> TuningSpec:
    return TuningSpec(
        model_dir=str(model), num_devices=1, workload=f"csv:{trace},seconds=5", sla="p95_ttft_ms<=9"
    )


def test_paths_begin_at_the_folders_and_may_be_whole(found: Places, tmp_path: Path) -> None:
    trace = tmp_path / "traces" / "a,b.csv"
    for spec in (_spec(), _spec(tmp_path / "models" / "tiny", trace)):
        confined = found.confine(spec)
        assert confined.model_dir == str(tmp_path / "models" / "tiny")
        assert confined.workload == f"csv:{trace},seconds=5"
    assert found.confine(_spec("other")).model_dir == str(tmp_path / "more" / "other")


def test_a_trace_whose_lengths_are_taken_lies_where_traces_lie(
    found: Places, tmp_path: Path
) -> None:
    spec = replace(_spec(), workload="poisson:rate=1,lengths=csv:a,b.csv,seconds=5")
    confined = found.confine(spec).workload
    assert confined == f"poisson:rate=1,lengths=csv:{tmp_path / 'traces' / 'a,b.csv'},seconds=5"
    with pytest.raises(TunerError, match="GEARSHIFT_TRACE_ROOT"):
        found.check_workload("poisson:rate=1,lengths=csv:/etc/passwd")


@pytest.mark.parametrize("text", ["../secret.csv", "/etc/passwd", "x/../../secret.csv", "/a\0"])
def test_a_text_that_leads_outside_is_refused_by_its_text(found: Places, text: str) -> None:
    for place in (found.models, found.traces):
        with pytest.raises(TunerError, match=place.variable):
            place.candidates(text)


def test_a_link_that_leads_outside_is_refused_where_it_leads(found: Places, tmp_path: Path) -> None:
    os.symlink(tmp_path / "secret.csv", tmp_path / "traces" / "link.csv")
    with pytest.raises(TunerError, match=r"leads to .*secret\.csv, which .*GEARSHIFT_TRACE_ROOT"):
        found.confine(_spec(trace="link.csv"))
    os.symlink(tmp_path / "secret.csv", tmp_path / "models" / "tiny" / "tokenizer.json")
    with pytest.raises(TunerError, match=r"secret\.csv"):
        found.confine(_spec())


def test_a_link_inside_the_folders_is_followed(found: Places, tmp_path: Path) -> None:
    os.symlink(tmp_path / "more" / "other", tmp_path / "models" / "again")
    assert found.confine(_spec("again")).model_dir == str(tmp_path / "more" / "other")


def test_pipes_loops_and_what_is_not_there_are_refused_without_waiting(
    found: Places, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "traces" / "pipe")
    with pytest.raises(TunerError, match="pipe: is no regular file"):
        found.confine(_spec(trace="pipe"))
    os.symlink("loop", tmp_path / "traces" / "loop")
    with pytest.raises(TunerError, match="loop: cannot be read"):
        found.confine(_spec(trace="loop"))
    with pytest.raises(TunerError, match="No such file"):
        found.confine(_spec(trace="none.csv"))
    os.mkfifo(tmp_path / "models" / "tiny" / "generation_config.json")
    with pytest.raises(TunerError, match=r"generation_config\.json: is no regular file"):
        found.confine(_spec())


def test_files_larger_than_they_may_be_are_refused_unread(found: Places, tmp_path: Path) -> None:
    os.truncate(tmp_path / "traces" / "a,b.csv", places.MAX_TRACE_BYTES + 1)
    with pytest.raises(TunerError, match="at most 536870912 may be"):
        found.confine(_spec())


def test_without_settings_the_folders_lie_in_the_data_folder(tmp_path: Path) -> None:
    found = ServiceSettings(data_dir=tmp_path).places
    assert found.models.folders == (tmp_path / "models",)
    assert found.traces.folders == (tmp_path / "traces",)


def test_names_are_told_from_paths() -> None:
    assert is_name("llama-3.1-70b")
    assert is_name("meta-llama/Llama-3.1-70B-Instruct")
    for path in ("/data/llama", "../llama", "./llama", "a/../b", "a/b/c", "config.json", ""):
        assert not is_name(path)
