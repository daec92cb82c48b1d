"""Text made by rule, and a byte-level BPE tokenizer trained on it: nothing is downloaded."""

from __future__ import annotations

import random
from collections.abc import Iterator

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

BOS_TOKEN = "<|begin|>"
EOS_TOKEN = "<|end|>"
TURN_END_TOKEN = "<|turn_end|>"
ROLE_TOKEN = "<|role|>"
# A token's id is its place here, so the ids that end an output come before all ordinary ones.
SPECIAL_TOKENS = (BOS_TOKEN, EOS_TOKEN, TURN_END_TOKEN, ROLE_TOKEN)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    + ROLE_TOKEN
    + "{{ message['role'] }}\n{{ message['content'] }}"
    + TURN_END_TOKEN
    + "{% endfor %}{% if add_generation_prompt %}"
    + ROLE_TOKEN
    + "assistant\n{% endif %}"
)

NUM_SENTENCES = 6_000
SUBJECTS = (
    "the engine", "a scheduler", "every rank", "the router", "this server", "one request",
    "the operator", "a long prompt", "the cache", "our controller", "each replica", "the user",
)  # fmt: skip
VERBS = (
    "measures", "keeps", "shares", "sends", "predicts", "moves", "reads", "writes", "balances",
    "holds", "waits for", "finishes", "splits", "gathers",
)  # fmt: skip
OBJECTS = (
    "a batch of tokens", "the next step", "its own weights", "two pipeline stages",
    "the slow link", "a small answer", "more memory", "the first token", "its latency target",
    "a busy device", "the shared table", "a new plan",
)  # fmt: skip
ENDINGS = (
    "before the queue grows", "while traffic is low", "without losing work", "when it rains",
    "when the load changes", "after a restart", "at night", "as fast as it can",
)  # fmt: skip
ONSETS = ("b", "br", "d", "f", "g", "k", "kl", "l", "m", "n", "p", "r", "s", "st", "t", "v", "z")
VOWELS = ("a", "e", "i", "o", "u", "ai", "ou", "é")
CODAS = ("", "n", "r", "s", "l", "t", "nd", "m")


def train_tokenizer(vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer of at most ``vocab_size`` ids (at least 260), always the same.

    Every text round-trips: all 256 bytes are in the vocabulary.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A", special_tokens=[(BOS_TOKEN, SPECIAL_TOKENS.index(BOS_TOKEN))]
    )
    return tokenizer


def sentences() -> Iterator[str]:
    """Lines to learn from: plain sentences, invented words, numbers and snippets of code."""
    rng = random.Random(20_250_917)
    words = [_word(rng) for _ in range(NUM_SENTENCES // 2)]
    for number in range(NUM_SENTENCES):
        match number % 4:
            case 0 | 1:
                yield _plain(rng).capitalize() + "."
            case 2:
                yield " ".join(rng.choices(words, k=rng.randint(6, 12))) + "?"
            case _:
                yield _code(rng, rng.choice(words))


def _plain(rng: random.Random) -> str:
    parts = (rng.choice(SUBJECTS), rng.choice(VERBS), rng.choice(OBJECTS), rng.choice(ENDINGS))
    return " ".join(parts)


def _word(rng: random.Random) -> str:
    syllables = rng.randint(1, 4)
    return "".join(
        rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(syllables)
    )


def _code(rng: random.Random, name: str) -> str:
    value = rng.randint(0, 9_999)
    return rng.choice(
        (
            f"def {name}(x):\n    return x + {value}\n",
            f'{{"{name}": {value}, "ok": true}}',
            f"for {name} in range({value}):\n    print({name})\n",
            f"{name} = {value / 100:.2f}  # {rng.choice(OBJECTS)}",
        )
    )
