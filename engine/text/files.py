"""The files of a tokenizer, joined as ``transformers`` joins them.

``tokenizer.json`` has the vocabulary and its rules. Tokens that were added later, and which of
them begin or end a text, may stand in ``tokenizer_config.json``, ``special_tokens_map.json`` and
``added_tokens.json`` only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from engine.spec.errors import CheckpointError

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
TEMPLATE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
DEFAULT_TEMPLATE = "default"
SPECIAL_NAMES = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
# Older files list more special tokens under the first name, newer ones under the second.
EXTRA_NAMES = ("additional_special_tokens", "extra_special_tokens")
TOKEN_FLAGS = frozenset({"single_word", "lstrip", "rstrip", "normalized", "special"})

AddedTokens = dict[int, tokenizers.AddedToken]


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """What a folder says of its tokenizer.

    ``special_tokens`` by name (``bos_token``), ``templates`` by name (``default``, ``tool_use``).
    """

    backend: tokenizers.Tokenizer
    special_tokens: Mapping[str, str]
    templates: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class _Specials:
    """Special tokens: those with a name, and further ones."""

    named: dict[str, str | tokenizers.AddedToken]
    further: list[str | tokenizers.AddedToken]

    def in_order(self) -> list[str | tokenizers.AddedToken]:
        """The order in which those that are new get their ids."""
        usual = [self.named[name] for name in SPECIAL_NAMES if name in self.named]
        others = [token for name, token in self.named.items() if name not in SPECIAL_NAMES]
        return [*usual, *others, *self.further]


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read all of them; only ``tokenizer.json`` must be there.

    Raises:
        CheckpointError: a missing or unreadable file, or one that contradicts another.
    """
    backend = _read_backend(folder / TOKENIZER)
    config = read_object(folder / CONFIG)
    added = _tokens_of_config(config, folder / CONFIG)
    specials = _read_specials(config, folder)
    # As transformers: a config that lists its added tokens is the newer kind, and complete.
    if "added_tokens_decoder" not in config:
        older = _read_added_tokens(folder / ADDED_TOKENS, specials)
        known = backend.get_added_tokens_decoder()
        added = {token_id: token for token_id, token in older.items() if token_id not in known}
    padding = backend.padding
    if padding:
        specials.named.setdefault("pad_token", padding["pad_token"])
    # Both are for batches of examples; a prompt is neither padded nor cut.
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = bool(config.get("split_special_tokens", False))
    _add_tokens(backend, added, specials, folder)
    return TokenizerFiles(
        backend=backend,
        special_tokens={name: _text(token) for name, token in specials.named.items()},
        templates=_read_templates(folder, config),
    )


def find_eos_token_id(folder: Path) -> int | None:
    """The id of the tokenizer's own ``eos_token``; None without a tokenizer or such a token.

    Raises:
        CheckpointError: see :func:`read_tokenizer_files`.
    """
    if not (folder / TOKENIZER).exists():
        return None
    files = read_tokenizer_files(folder)
    eos = files.special_tokens.get("eos_token")
    return None if eos is None else files.backend.token_to_id(eos)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``, {} where there is no such file.

    Raises:
        CheckpointError: it cannot be read, or holds something else.
    """
    if not path.exists():
        return {}
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
        # Half of a surrogate pair can be escaped in JSON, and is no text.
        json.dumps(parsed, ensure_ascii=False).encode()
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path}: holds {type(parsed).__name__}, not an object")
    return parsed


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; a model folder has a tokenizer.json")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path}: cannot be read ({error})") from error


def _tokens_of_config(config: Mapping[str, Any], where: Path) -> AddedTokens:
    """The entry ``added_tokens_decoder``: ids, written as text, to tokens."""
    listed = config.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise CheckpointError(f"{where}: added_tokens_decoder is {listed!r}, not an object")
    return {_id(key, where): _token(value, where) for key, value in listed.items()}


def _read_specials(config: Mapping[str, Any], folder: Path) -> _Specials:
    """Special tokens of the config; an older folder's map has the last word."""
    specials = _Specials(named={}, further=[])
    _take_specials(specials, config, folder / CONFIG)
    if "added_tokens_decoder" not in config:
        path = folder / SPECIAL_TOKENS_MAP
        _take_specials(specials, read_object(path), path)
    return specials


def _take_specials(specials: _Specials, source: Mapping[str, Any], where: Path) -> None:
    for name, value in source.items():
        if name in SPECIAL_NAMES and value is not None:
            specials.named[name] = _special(value, where)
        elif name in EXTRA_NAMES and isinstance(value, dict):
            specials.named.update({key: _special(token, where) for key, token in value.items()})
        elif name in EXTRA_NAMES and isinstance(value, list):
            specials.further.extend(_special(token, where) for token in value)
        elif name.endswith("_token") and isinstance(value, str):
            specials.named[name] = value


def _special(value: Any, where: Path) -> str | tokenizers.AddedToken:
    if isinstance(value, str):
        return value
    return _token(value | {"special": True} if isinstance(value, dict) else value, where)


def _read_added_tokens(path: Path, specials: _Specials) -> AddedTokens:
    """The oldest form: texts of tokens to their ids."""
    known = {_text(token) for token in specials.in_order()}
    return {
        _id(token_id, path): tokenizers.AddedToken(
            text, normalized=text not in known, special=text in known
        )
        for text, token_id in read_object(path).items()
    }


def _add_tokens(
    backend: tokenizers.Tokenizer, added: AddedTokens, specials: _Specials, folder: Path
) -> None:
    """Teach ``backend`` the tokens it does not know, in the order of their ids."""
    known = backend.get_added_tokens_decoder().values()
    known_forms, known_texts = {repr(token) for token in known}, {token.content for token in known}
    named = {_text(token) for token in specials.named.values()}
    wanted = [token for _, token in sorted(added.items()) if repr(token) not in known_forms]
    for token in wanted:
        token.special = token.special or token.content in named
    known_texts |= {token.content for token in wanted}
    for special in specials.in_order():
        if _text(special) not in known_texts:
            known_texts.add(_text(special))
            wanted.append(
                tokenizers.AddedToken(special, special=True)
                if isinstance(special, str)
                else special
            )
    backend.add_tokens(wanted)
    for token_id, token in added.items():
        if (found := backend.token_to_id(token.content)) != token_id:
            raise CheckpointError(
                f"{folder}: token {token.content!r} has id {token_id} in {CONFIG} or "
                f"{ADDED_TOKENS}, but {found} after {TOKENIZER}"
            )


def _read_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Template files go before the config's entry (a text, or a list of named ones)."""
    found = {path.stem: path for path in sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))}
    if (folder / TEMPLATE).exists():
        found[DEFAULT_TEMPLATE] = folder / TEMPLATE
    if found:
        return {name: _read_text(path) for name, path in found.items()}
    entry = config.get("chat_template")
    if entry is None:
        return {}
    if isinstance(entry, str):
        return {DEFAULT_TEMPLATE: entry}
    try:
        named = entry if isinstance(entry, dict) else {x["name"]: x["template"] for x in entry}
    except (TypeError, KeyError) as error:
        raise CheckpointError(
            f"{folder / CONFIG}: chat_template is neither a text nor a list of named ones"
        ) from error
    for name, text in named.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise CheckpointError(f"{folder / CONFIG}: chat_template {name!r} is not a text")
    return named


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as text ({error})") from error


def _id(value: Any, where: Path) -> int:
    try:
        token_id = int(value)
    except (TypeError, ValueError, OverflowError):
        token_id = -1
    if isinstance(value, bool | float) or not 0 <= token_id < 2**31:
        raise CheckpointError(f"{where}: {value!r} is not the id of a token")
    return token_id


def _token(value: Any, where: Path) -> tokenizers.AddedToken:
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise CheckpointError(f"{where}: {value!r} is not a token: it has no text content")
    flags = {name: value[name] for name in TOKEN_FLAGS & value.keys()}
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise CheckpointError(f"{where}: {name} of token {value['content']!r} is {flag!r}")
    return tokenizers.AddedToken(value["content"], **flags)


def _text(token: str | tokenizers.AddedToken) -> str:
    return token if isinstance(token, str) else token.content
