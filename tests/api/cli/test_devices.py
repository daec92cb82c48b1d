"""``gearshift devices``: clean without a driver; what it shows with one."""

from __future__ import annotations

import json

import pynvml
import pytest
from typer.testing import CliRunner

from api.cli.devices import read_devices, show_devices
from api.cli.main import create_app
from tests.engine.nvml.engines import gpus
from tests.engine.nvml.fake_nvml import FakeNvml


def machine() -> FakeNvml:
    found = gpus(2)
    for gpu in found:
        gpu.links, gpu.events = [None] * 18, pynvml.nvmlClocksEventReasonSwPowerCap
    return FakeNvml(*found)


def test_without_a_driver_it_says_why_and_that_is_no_mistake() -> None:
    if read_devices(0.0)["devices"]:
        pytest.skip("this machine has devices")
    told = CliRunner().invoke(create_app(), ["devices"])
    assert told.exit_code == 0, told.output
    assert told.stdout.startswith("no devices: ")
    done = CliRunner().invoke(create_app(), ["devices", "--json", "--seconds", "1"])
    document = json.loads(done.stdout)
    assert document["absent"]
    assert (document["devices"], document["pairs"]) == ([], [])
    assert document["hardware"] is document["watched"] is None


def test_the_document_has_links_pairs_the_word_to_plan_with_and_what_was_watched() -> None:
    document = read_devices(0.05, machine())
    json.dumps(document, allow_nan=False)
    assert document["absent"] is None
    assert [device["num_nvlinks"] for device in document["devices"]] == [18, 18]
    assert document["pairs"][0]["num_nvlinks"] == 18
    assert document["hardware"] == "2xh100"
    assert [one["index"] for one in document["watched"]] == [0, 1]
    for one in document["watched"]:
        assert one["seconds"] >= 0.05
        assert one["limited_ratio"] == {"power_cap": 1.0}
        assert one["busy_ratio"] == pytest.approx(0.97)


def test_pairs_that_are_joined_alike_share_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    show_devices(read_devices(0.05, machine()))
    text = capsys.readouterr().out
    assert "0-1: 18 NVLinks, PCIe by system, direct" in text
    assert "to plan for them: --hardware 2xh100" in text
    assert "power_cap" in text
