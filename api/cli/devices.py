"""``gearshift devices``: this machine's devices and links, and what they do meanwhile."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.common import fail, print_json
from api.cli.engine_options import JsonOption
from policies.numbers import short

if TYPE_CHECKING:
    from rich.console import Console

    from engine.nvml.library import Library

MOST_SECONDS = 3600.0
INTERVAL_S = 0.1


def devices(
    seconds: Annotated[
        float,
        typer.Option(min=0.0, max=MOST_SECONDS, help="Watch them for so long, beside a run."),
    ] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Show this machine's CUDA devices, how they are joined, and the --hardware that means them.

    With --seconds, also their power, energy, use and clocks in that time. Nothing is set. Without a
    driver there is nothing to show, and that is no mistake.
    """
    document = read_devices(seconds)
    if as_json:
        print_json(document)
    else:
        show_devices(document)


def read_devices(seconds: float, library: Library | None = None) -> dict[str, Any]:
    """The answer; ``absent`` says why there are no devices, ``watched`` is None without a time."""
    from engine.nvml.library import Nvml
    from engine.nvml.topology import Joined, read_topology
    from engine.spec.errors import DeviceLostError, DriverAbsentError
    from tuner.hardware.detected import describe

    absent = None
    try:
        with Nvml(library) as driver:
            joined = read_topology(driver)
    except DriverAbsentError as error:
        joined, absent = Joined(devices=(), pairs=()), str(error)
    except DeviceLostError as error:
        fail(f"a device of this machine went while it was asked: {error}")
    return {
        "absent": absent,
        "devices": [device.to_json() for device in joined.devices],
        "pairs": [pair.to_json() for pair in joined.pairs],
        "hardware": describe(joined),
        "watched": _watch([device.uuid for device in joined.devices], seconds, library),
    }


def _watch(
    uuids: list[str], seconds: float, library: Library | None
) -> list[dict[str, Any]] | None:
    from engine.nvml.library import Nvml
    from engine.nvml.monitor import DeviceMonitor
    from engine.nvml.reading import DeviceId
    from engine.nvml.summary import DeviceSummary

    if not seconds or not uuids:
        return None
    meant = [DeviceId(index=n, uuid=uuid.partition("-")[2]) for n, uuid in enumerate(uuids)]
    num_kept = int(seconds / INTERVAL_S) + 2
    with DeviceMonitor(
        lambda: meant,
        interval_s=INTERVAL_S,
        num_kept=num_kept,
        open_driver=lambda: Nvml(library),
    ) as monitor:
        monitor.read_now()
        time.sleep(seconds)
        monitor.read_now()
        kept = [monitor.history(device.index) for device in meant]
    return [DeviceSummary.of(readings).to_json() for readings in kept if readings]


def show_devices(document: dict[str, Any]) -> None:
    """The answer for people."""
    from rich.console import Console

    console = Console(highlight=False)
    if not document["devices"]:
        console.print(f"no devices: {document['absent'] or 'the driver lists none'}")
        return
    _print_devices(console, document["devices"])
    for line in _pair_lines(document["pairs"]):
        console.print(line)
    if (word := document["hardware"]) is not None:
        console.print(f"to plan for them: --hardware {word}")
    if document["watched"] is not None:
        _print_watched(console, document["watched"])


def _print_devices(console: Console, found: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table("device", "name", "memory", "NVLinks", "all, per direction", "PCIe")
    for device in found:
        generation, width = device["pcie_generation"], device["pcie_width"]
        table.add_row(
            str(device["index"]),
            device["name"],
            f"{device['memory_bytes'] / 2**30:.1f} GiB",
            str(device["num_nvlinks"]),
            _scaled(device["nvlink_bytes_per_s"], 1e9, "GB/s"),
            f"{generation} x{width}" if generation and width else "-",
        )
    console.print(table)


def _pair_lines(pairs: list[dict[str, Any]]) -> list[str]:
    """Pairs that are joined alike, in one line."""
    alike: dict[str, list[str]] = {}
    for pair in pairs:
        links = f"{pair['num_nvlinks']} NVLinks" if pair["num_nvlinks"] else "no NVLink"
        path = (pair["path"] or "unknown").replace("_", " ")
        direct = {None: "", True: ", direct", False: ", by way of the host"}
        words = f"{links}, PCIe by {path}{direct[pair['reads_directly']]}"
        alike.setdefault(words, []).append(f"{pair['first']}-{pair['second']}")
    return [f"{', '.join(ends)}: {words}" for words, ends in alike.items()]


def _print_watched(console: Console, watched: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table("device", "seconds", "J", "W", "busy", "memory busy", "SM MHz", "held down by")
    for one in watched:
        held = [f"{reason} {share:.0%}" for reason, share in one["limited_ratio"].items()]
        table.add_row(
            str(one["index"]),
            short(one["seconds"]),
            _scaled(one["joules"], 1, ""),
            _scaled(one["mean_w"], 1, ""),
            _scaled(one["busy_ratio"], 0.01, "%"),
            _scaled(one["memory_busy_ratio"], 0.01, "%"),
            _scaled(one["sm_clock_hz"], 1e6, ""),
            ", ".join(held) or "-",
        )
    console.print(table)


def _scaled(value: float | None, unit: float, word: str) -> str:
    return "-" if value is None else f"{short(value / unit)} {word}".rstrip()
