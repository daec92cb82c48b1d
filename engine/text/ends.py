"""Which tokens end an output: what every file of a checkpoint says, together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from engine.spec.model import ModelConfig
from engine.text.files import find_eos_token_id


@dataclass(frozen=True, kw_only=True)
class EndTokens:
    """Ids that end an output, by where they are from.

    The three often differ: a chat model's own end of a turn may stand in one of them only.
    """

    of_model: tuple[int, ...]
    of_tokenizer: int | None

    @property
    def ids(self) -> tuple[int, ...]:
        """All of them, each once."""
        added = () if self.of_tokenizer is None else (self.of_tokenizer,)
        return tuple(dict.fromkeys((*self.of_model, *added)))

    @property
    def notice(self) -> str | None:
        """One line for an operator where the tokenizer ends more than the model's files say."""
        if self.of_tokenizer is None or self.of_tokenizer in self.of_model:
            return None
        stated = ", ".join(map(str, self.of_model)) or "none"
        return (
            f"outputs end at token ids {', '.join(map(str, self.ids))}: config.json and "
            f"generation_config.json say {stated}, the tokenizer's eos_token is {self.of_tokenizer}"
        )


def read_end_tokens(model_dir: Path, model: ModelConfig) -> EndTokens:
    """The end tokens of ``model_dir``, of which ``model`` was read.

    Raises:
        CheckpointError: a tokenizer that cannot be read.
    """
    eos = find_eos_token_id(model_dir)
    is_known = eos is not None and eos < model.vocab_size
    return EndTokens(of_model=model.eos_token_ids, of_tokenizer=eos if is_known else None)


def read_served_model(model_dir: Path) -> ModelConfig:
    """The model of a folder, ended by its tokenizer's end token too.

    Raises:
        CheckpointError: see :meth:`ModelConfig.from_dir` and :func:`read_end_tokens`.
    """
    model = ModelConfig.from_dir(model_dir)
    return replace(model, eos_token_ids=read_end_tokens(model_dir, model).ids)
