"""``gearshift model``: make checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from api.cli.common import print_json, print_line
from api.cli.engine_options import MOST_SEED


def create(
    model_dir: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to.")],
    preset: Annotated[
        str,
        typer.Option(help="tiny, small, or a shape without weights: llama-3.1-8b, llama-3.1-70b."),
    ] = "tiny",
    seed: Annotated[
        int, typer.Option(min=0, max=MOST_SEED, help="Seed of the random weights.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a random checkpoint in Hugging Face format, with a trained BPE tokenizer."""
    from engine.models.create import create_model

    made = create_model(model_dir, preset=preset, seed=seed)
    if as_json:
        print_json(
            {
                "model_dir": str(made.model_dir),
                "preset": made.preset,
                "seed": made.seed,
                "num_params": made.num_params,
                "weight_files": list(made.weight_files),
            }
        )
    else:
        weights = f"{made.num_params / 1e6:.1f} M parameters" if made.num_params else "no weights"
        print_line(f"{made.model_dir}: preset {made.preset}, seed {made.seed}, {weights}")
