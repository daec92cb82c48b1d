"""A user's own descriptions beside the built-in ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.spec.plan import ParallelPlan
from tests.tuner.catalogs import MODEL_CONFIG, write, write_catalog, write_like
from tuner.backends import load_backend
from tuner.described import catalog
from tuner.described.parse import describe_node
from tuner.hardware import load_link, parse_hardware
from tuner.hardware.device import DEVICES, list_devices
from tuner.hardware.links import LINKS
from tuner.spec.catalog import BUILT_IN
from tuner.spec.errors import TunerError
from tuner.work.models import load_model


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty catalog that is looked into."""
    folder = tmp_path / "catalog"
    folder.mkdir()
    monkeypatch.setenv("GEARSHIFT_CATALOG", str(folder))
    return folder


def test_every_built_in_description_is_listed_with_its_facts() -> None:
    lists: tuple[Callable[[], list[Any]], ...] = (
        catalog.catalog_models,
        catalog.catalog_hardware,
        catalog.catalog_backends,
        catalog.catalog_links,
    )
    for list_kind in lists:
        found = list_kind()
        assert found
        for item in found:
            assert (item.origin, item.error) == (BUILT_IN, None)
            assert item.title
    h200 = next(item for item in catalog.catalog_hardware() if item.name == "h200")
    assert h200.formats is not None
    assert "fp8" in h200.formats
    assert h200.link == "nvlink4"


def test_own_descriptions_are_named_like_built_in_ones(own: Path) -> None:
    write_catalog(own)
    node = describe_node(model="mini", hardware="2xchip9", backend="ours")
    assert node.hardware.device.link.bytes_per_s_per_direction == 100e9
    assert node.num_kv_blocks(ParallelPlan(tp=2)) > 0
    assert parse_hardware("8xh200@fastlink").device.link == load_link("fastlink")
    assert load_backend("ours").title == "Gearshift"
    assert (load_model("mini").num_layers, load_model("Midi").num_layers) == (4, 8)


def test_own_descriptions_are_listed_with_their_file(own: Path) -> None:
    write_catalog(own)
    origins = {item.name: item.origin for item in catalog.catalog_hardware()}
    assert origins["chip9"] == str(own / "devices" / "chip9.json")
    assert origins["h200"] == BUILT_IN
    models = {item.name: item for item in catalog.catalog_models()}
    assert models["midi"].origin == str(own / "models" / "midi" / "config.json")
    assert models["midi"].max_model_len == 4096


def test_curves_beside_an_own_device_are_its_own(own: Path) -> None:
    write_like(DEVICES, own, "h200", "h200-2u", memory_bytes_per_s=4e12)
    assert parse_hardware("h200-2u").device.calibration == "uncalibrated"
    curves = (DEVICES.folder / "h200.curves.json").read_text()
    (own / "devices" / "h200-2u.curves.json").write_text(curves)
    assert parse_hardware("h200-2u").device.calibration == "calibrated for bf16, fp16, fp8"
    assert "h200-2u.curves" not in list_devices()


def test_a_built_in_name_is_refused_and_stays_what_it_was_until_then(own: Path) -> None:
    write_like(DEVICES, own, "mi325x", "h200")
    with pytest.raises(TunerError, match=r"devices/h200\.json: device 'h200' is built in"):
        parse_hardware("8xh200")
    assert parse_hardware("8xh100").count == 8
    broken = next(item for item in catalog.catalog_hardware() if item.name == "h200")
    assert broken.error is not None
    assert "as in my-h200.json" in broken.error


def test_a_model_may_not_take_a_published_name(own: Path) -> None:
    write(own, "models", "llama-3.1-8b-instruct", MODEL_CONFIG)
    with pytest.raises(TunerError, match="is built in"):
        load_model("llama-3.1-8b-instruct")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", r"chip\.json: cannot be read as JSON"),
        ("[]", r"chip\.json: holds list"),
        ({"schema": "device/v1"}, r"chip\.json: schema 'device/v1'"),
        ({"schema": "device/v3", "nam": "chip"}, r"chip\.json: unknown key 'nam'"),
    ],
)
def test_a_broken_file_is_one_error_with_file_and_field(
    own: Path, document: dict[str, Any] | str, message: str
) -> None:
    write(own, "devices", "chip", document)
    with pytest.raises(TunerError, match=message):
        parse_hardware("8xchip")
    assert parse_hardware("8xh200").count == 8


def test_a_model_described_twice_is_refused(own: Path) -> None:
    write(own, "models", "mini", MODEL_CONFIG)
    write(own, "models/mini", "config", MODEL_CONFIG)
    with pytest.raises(TunerError, match=r"mini\.json and .*mini/config\.json have one name"):
        load_model("mini")


def test_a_model_with_a_wrong_value_names_it(own: Path) -> None:
    write(own, "models", "odd", {**MODEL_CONFIG, "hidden_size": "wide"})
    with pytest.raises(TunerError, match=r"odd\.json: hidden_size \"wide\" is not a whole number"):
        load_model("odd")


def test_a_name_inside_a_file_must_be_the_files(own: Path) -> None:
    write_like(LINKS, own, "pcie5", "wire", name="other")
    with pytest.raises(TunerError, match=r"wire\.json: name 'other' is not the file's, 'wire'"):
        load_link("wire")


def test_a_name_that_no_command_could_say_is_told_in_the_list(own: Path) -> None:
    write_like(LINKS, own, "pcie5", "My Link")
    listed = next(item for item in catalog.catalog_links() if item.name == "My Link")
    assert listed.error is not None
    assert "is no name" in listed.error


def test_a_link_measured_on_a_device_without_curves_is_refused(own: Path) -> None:
    write_like(LINKS, own, "pcie5", "wire", measured_on="mi325x")
    with pytest.raises(TunerError, match="'mi325x', which has no curves"):
        parse_hardware("8xh200@wire")


def test_a_folder_that_is_not_there_or_misspelt_is_told(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own / "device").mkdir()
    with pytest.raises(TunerError, match=r"device: not looked into .did you mean 'devices'"):
        list_devices()
    monkeypatch.setenv("GEARSHIFT_CATALOG", str(own / "nowhere"))
    with pytest.raises(TunerError, match=r"GEARSHIFT_CATALOG=.*nowhere: there is no such folder"):
        load_model("llama-3.1-8b")
