"""Images, the compose file, the chart and the wheel: what they say is so, and all is in them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from api.cli import main
from api.cli.commands import COMMANDS
from tests.rooms import PACKAGES, ROOT

DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose"
BIN = Path(sys.executable).parent
PACKAGED = (*PACKAGES, "migrations")


def _options(path: str) -> set[str]:
    """The options of a command, as its help lists them."""
    ref = next(ref for ref in COMMANDS if ref.path == path)
    command: Any = typer.main.get_command(main._load(ref))
    return {word for parameter in command.params for word in parameter.opts}


def _compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    return found


@pytest.mark.parametrize(
    "words",
    [
        ("yamllint", "--strict", "-c", "deploy/.yamllint.yaml", "deploy"),
        ("hadolint", "deploy/docker/Dockerfile"),
    ],
    ids=lambda words: words[0],
)
def test_a_linter_finds_nothing(words: tuple[str, ...]) -> None:
    program = BIN / words[0]
    if not program.exists():
        pytest.skip(f"{words[0]} is not installed")
    done = subprocess.run(
        [program, *words[1:]], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_compose_file_mounts_and_asks_for_is_there() -> None:
    text = (COMPOSE / "compose.yaml").read_text()
    asked = set(re.findall(r"\$\{(\w+)", text)) - set(re.findall(r"\$\{(\w+):-", text))
    given = set(re.findall(r"^(\w+)=", (COMPOSE / "example.env").read_text(), re.MULTILINE))
    assert asked <= given
    for service in _compose()["services"].values():
        for mount in service.get("volumes", []):
            source = mount.partition(":")[0]
            assert not source.startswith(".") or (COMPOSE / source).resolve().exists(), mount
    build = _compose()["services"]["control"]["build"]
    assert (COMPOSE / build["context"] / build["dockerfile"]).resolve().exists()


def test_containers_are_started_with_options_that_commands_have() -> None:
    engine = _compose()["services"]["engine"]["command"]
    assert {word for word in engine if word.startswith("--")} <= _options("engine serve")
    chart = DEPLOY / "helm" / "gearshift" / "templates"
    found = set(re.findall(r"^ +- (--[\w-]+)$", (chart / "engine.yaml").read_text(), re.MULTILINE))
    assert found
    assert found <= _options("engine serve")
    served = set(re.findall(r"(?<!-)--\w[\w-]*", (chart / "control.yaml").read_text()))
    assert served <= _options("serve")


def test_the_chart_uses_the_values_that_it_has() -> None:
    chart = DEPLOY / "helm" / "gearshift"
    values = yaml.safe_load((chart / "values.yaml").read_text())
    text = "".join(file.read_text() for file in (chart / "templates").iterdir())
    for path in sorted(set(re.findall(r"\.Values((?:\.\w+)+)", text))):
        here = values
        for name in path.strip(".").split("."):
            assert name in here, path
            here = here[name]


def test_versions_agree() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    version = re.findall(r'^version = "(.+)"$', text, re.MULTILINE)[0]
    chart = yaml.safe_load((DEPLOY / "helm" / "gearshift" / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)


def _list_files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def _checkout(folder: Path) -> Path:
    """A copy of the files under version control."""
    for name in _list_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.mark.slow
def test_a_wheel_installs_without_a_compiler_and_brings_its_data(tmp_path: Path) -> None:
    """Built from the sdist's own contents, into an environment that has the dependencies only."""
    source, wheels, place = tmp_path / "source", tmp_path / "wheels", tmp_path / "place"
    listed = _list_files()
    _checkout(source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(source)]
    subprocess.run([*pip, *build], check=True, timeout=300)
    wheel = next(wheels.glob("gearshift-*.whl"))
    assert wheel.name.endswith("-py3-none-any.whl")
    install = ["install", "--no-deps", "--no-compile", "--target", str(place), str(wheel)]
    subprocess.run([*pip, *install], check=True, timeout=300)
    missing = [
        name for name in listed if name.split("/")[0] in PACKAGED and not (place / name).exists()
    ]
    assert missing == []
    environment = {
        **os.environ,
        "PYTHONPATH": str(place),
        "GEARSHIFT_NO_COMPILER": "1",
        "PATH": str(place / "bin"),
        "HOME": str(tmp_path),
    }

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "api.cli.main", *words],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("--version").strip()
    assert "SLA met" in run(
        *("simulate", "--model", "llama-3.1-8b", "--hardware", "1xh200", "--plan", "tp=1"),
        *("--workload", "poisson:rate=2,input=64,output=8,seconds=5", "--sla", "p95_ttft_ms<=500"),
    )
    assert "newest" in run("db", "upgrade") + run("db", "check")
    run("model", "create", str(tmp_path / "model"), "--preset", "tiny")
    run("generate", "--model", str(tmp_path / "model"), "--prompt", "a", "--max-tokens", "2")


@pytest.mark.slow
def test_an_sdist_installs_into_an_empty_environment_without_a_compiler(tmp_path: Path) -> None:
    """What ``pip install gearshift-X.tar.gz`` does where only the dependencies are at hand."""
    source = _checkout(tmp_path / "source")
    made = subprocess.run(
        [
            sys.executable,
            "-c",
            "from setuptools import build_meta as b; print(b.build_sdist('..'))",
        ],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert made.returncode == 0, made.stderr
    sdist = tmp_path / made.stdout.split()[-1]
    environment = tmp_path / "venv"
    # Dependencies, and what builds, are this environment's, behind the new one's own packages.
    make = [sys.executable, "-m", "venv", "--without-pip", environment]
    subprocess.run(make, check=True, timeout=300)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    bare = {"PATH": "/usr/bin-without-compilers", "HOME": str(tmp_path), "CC": "/bin/false",
            "CXX": "/bin/false", "GEARSHIFT_NO_COMPILER": "1"}  # fmt: skip
    install = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    python = environment / "bin" / "python"
    subprocess.run([python, *install, sdist], check=True, timeout=300, env=bare, cwd=tmp_path)

    def run(*words: str) -> str:
        done = subprocess.run(
            [environment / "bin" / "gearshift", *words],
            env=bare,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [python, "-c", "import engine; print(engine.__file__)"],
        env=bare, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(environment) in where.stdout
    assert "27.8 M parameters" in run("model", "create", "./model", "--preset", "small")
    assert run("generate", "--model", "./model", "--prompt", "The quick", "--max-tokens", "2")
    assert "newest" in run("db", "upgrade") + run("db", "check")
    simulated = run(
        *("simulate", "--model", "llama-3.1-8b", "--hardware", "1xh200", "--plan", "tp=1"),
        *("--workload", "poisson:rate=2,input=64,output=8,seconds=5"),
    )
    assert "throughput" in simulated
