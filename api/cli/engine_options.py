"""Single options that several commands share, and how they are read and checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from api.cli.common import fail
from engine.spec.modes import Mode, ModePin, read_mode, read_pin
from engine.spec.quantisation import WeightFormat

if TYPE_CHECKING:
    from engine.spec.config import LinkEmulation
    from engine.spec.model import DType
    from engine.text.tokenizer import Tokenizer

# The largest seed that every random generator in use takes.
MOST_SEED = 2**32 - 1
MOST_LEN = 2**30
# Caps are bounded, because tables are allocated as large as they say.
MOST_SEQS = 2**17
MOST_TOKENS = 2**24
MOST_DEVICES = 2**14
UNITS = {"": 1, "k": 1000, "K": 1024, "m": 10**6, "M": 2**20}
MODEL_DIR = typer.Option("--model", metavar="DIR", help="Model folder in Hugging Face format.")
MODEL_NAME = typer.Option(
    "--model",
    metavar="NAME|DIR",
    help="Model by name, as in llama-3.1-70b, or a folder in Hugging Face format.",
)
ModelOption = Annotated[Path, MODEL_DIR]
ModelNameOption = Annotated[str, MODEL_NAME]
LinkOption = Annotated[
    str | None, typer.Option(help="Emulated link, as in latency_us=20,gbps=100.")
]
DeviceOption = Annotated[str, typer.Option(help="cpu or cuda. Nothing is guessed.")]
QuantizationOption = Annotated[
    WeightFormat | None,
    typer.Option(
        "--quantization",
        "-q",
        help="Quantise the layers of a plain checkpoint as it is loaded; a quantised one needs no "
        "word. w8a8: int8 weights, and on a CPU activations too, each token's by a scale of its "
        "own; int8 leaves those whole, also of a checkpoint that asks for w8a8.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def read_dtype(word: str, model_dir: Path) -> DType:
    """The number format of ranks that ``word`` names; ``auto`` asks the checkpoint."""
    from engine.spec.model import ModelConfig
    from tuner.described.parse import read_rank_dtype

    return read_rank_dtype(word, ModelConfig.from_dir(model_dir))


def read_link(words: str | None) -> LinkEmulation | None:
    """The emulated link that ``words`` describe, None where nothing is emulated."""
    from engine.spec.config import LinkEmulation

    return None if words is None else LinkEmulation.parse(words)


def check_device(word: str) -> str:
    """``cpu`` or ``cuda``, and the latter only where torch can use it."""
    if word not in ("cpu", "cuda"):
        fail(f"--device {word!r}: known are cpu and cuda")
    if word == "cuda":
        import torch

        if not torch.cuda.is_available():
            fail("--device cuda: this installation of torch finds no CUDA device")
    return word


def find_tokenizer(model_dir: Path) -> Tokenizer | None:
    """The folder's tokenizer, or None where it brings none."""
    from engine.text.tokenizer import Tokenizer

    has_one = (model_dir / "tokenizer.json").exists()
    return Tokenizer.from_dir(model_dir) if has_one else None


def read_count(option: str, word: str, most: int) -> int | None:
    """A count as vLLM writes it: ``8192``, ``8k`` (thousands) or ``8K`` (1,024s), None for
    ``auto``. Ends on anything else."""
    if word == "auto":
        return None
    unit = word[-1:] if word[-1:] in UNITS else ""
    digits = word.removesuffix(unit)
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 20):
        fail(f"{option} {word!r}: must be a whole number, as in 8192 or 8k, or auto")
    found = int(digits) * UNITS[unit]
    if not 1 <= found <= most:
        fail(f"{option} {word}: must be at least 1 and at most {most}, or auto")
    return found


def read_len(word: str) -> int | None:
    """The count that ``--max-model-len`` names."""
    return read_count("--max-model-len", word, MOST_LEN)


def read_mode_option(word: str) -> ModePin:
    """The word of ``--mode``: one of the fixed ones, or a rung such as ``4x2``."""
    try:
        return read_pin(word)
    except ValueError as error:
        fail(f"--mode {error}")


def read_rungs(text: str | None) -> tuple[Mode, ...] | None:
    """The modes that ``--rungs`` lists, None where nothing is said. Ends on anything else."""
    if text is None:
        return None
    try:
        return tuple(read_mode(word.strip()) for word in text.split(","))
    except ValueError:
        fail(f"--rungs {text!r}: list base, shift and rungs between, as in base,4x2,shift")


def is_http_url(text: str) -> bool:
    """Whether ``text`` is the address of an HTTP server, as far as can be told by looking."""
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # brackets without an address in them, a port that is none
        return False
