"""An engine in the program's own process: the same tokens under two plans.

gearshift model create ./model --preset tiny --seed 1
python examples/embed_an_engine.py ./model
"""

from __future__ import annotations

import sys
from pathlib import Path

from gearshift import (
    Caps,
    Engine,
    EngineConfig,
    SamplingParams,
    Tokenizer,
    parse_plan,
    planned_settings,
)


def main(model: str) -> None:
    """Continue one prompt under each plan."""
    folder = Path(model)
    tokenizer = Tokenizer.from_dir(folder)
    prompt = tuple(tokenizer.encode("The quick"))
    caps = Caps(max_num_seqs=4, max_num_batched_tokens=512)
    answers = []
    for plan in ("tp=1", "sp=2,shift=8"):
        settings = planned_settings(parse_plan(plan), caps)
        config = EngineConfig(model_dir=folder, settings=settings, num_kv_blocks=64)
        with Engine(config, tokenizer=tokenizer) as engine:
            made = engine.generate(prompt, SamplingParams(max_tokens=8))
        print(f"{plan}: {made.text!r}")
        answers.append(made.token_ids)
    assert answers[0] == answers[1], "a plan does not change the answer"


if __name__ == "__main__":  # ranks are processes of their own
    main(*sys.argv[1:])
