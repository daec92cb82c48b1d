"""Chat templates: conversations to prompts, byte for byte as ``transformers`` renders them.

Templates come from downloaded files: they run sandboxed and see nothing but plain JSON values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from engine.spec.errors import CheckpointError, RequestError

# Used where a checkpoint brings no template: roles as plain words, as base models see them.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
DEFAULT, WITH_TOOLS = "default", "tool_use"
# Names by which clients send what a model thought; templates read the first, some the second.
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
# Variables of every template that the caller's own may not replace.
OWN_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt"})

Message = Mapping[str, Any]


class ChatTemplates:
    """The templates of one checkpoint, by name. Safe to share between threads.

    Raises:
        CheckpointError: a template that does not parse.
    """

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        environment = _environment()
        self._templates = {
            name: _compile(environment, text)
            for name, text in (templates or {DEFAULT: PLAIN_TEMPLATE}).items()
        }
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt text of a conversation.

        ``variables`` are further ones of the template (``enable_thinking``); they go before the
        special tokens of the same names.

        Raises:
            RequestError: the template refuses these messages or cannot be run over them.
        """
        if taken := OWN_VARIABLES & (variables or {}).keys():
            raise RequestError(f"{min(taken)} is no variable of its own for a chat template")
        try:
            return self._find(has_tools=tools is not None).render(
                **self._special_tokens
                | {
                    **_plain(variables or {}),
                    "messages": [_message(message) for message in messages],
                    "tools": None if tools is None else _plain(tools),
                    "documents": None if documents is None else _plain(documents),
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except Exception as error:  # a template can raise whatever Python can
            raise RequestError(f"messages: the chat template refuses them ({error})") from error

    def _find(self, *, has_tools: bool) -> jinja2.Template:
        wanted = (WITH_TOOLS, DEFAULT) if has_tools else (DEFAULT,)
        found = next((name for name in wanted if name in self._templates), None)
        return self._templates[found or next(iter(self._templates))]


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what the assistant said, for training: here its text is all."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """A block with a scope of its own, as a call of a macro has."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_show")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _show(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """``dict`` without the attributes of a class."""

    def __call__(self, *args: Any, **items: Any) -> dict[Any, Any]:
        return dict(*args, **items)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """``namespace`` that keeps no names of Python's own."""

    def __init__(*args: Any, **items: Any) -> None:
        # No named parameter: a template may well have a variable called self.
        self, values = args[0], dict(*args[1:], **items)
        for name in values:
            _refuse_private(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace keeps no name like {name!r}")


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": _now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


def _compile(environment: ImmutableSandboxedEnvironment, text: str) -> jinja2.Template:
    try:
        return environment.from_string(text)
    except Exception as error:  # besides its own errors, what Python's compiler raises
        raise CheckpointError(f"chat template: {error}") from error


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which prompts must not be.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _now(pattern: str) -> str:
    # The clock of the machine without its zone, which %z would show.
    return datetime.now().strftime(pattern)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _message(message: Message) -> dict[str, Any]:
    """The message without null fields, with the model's thoughts under the names templates know."""
    kept = {key: _plain(value) for key, value in message.items() if value is not None}
    thoughts = next((kept[name] for name in REASONING_FIELDS if name in kept), None)
    if thoughts is None:
        return kept
    return {"thinking": thoughts, **kept, "reasoning_content": thoughts}


def _plain(value: Any) -> Any:
    """A copy of JSON values only: objects would bring methods into the sandbox."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or type(value) in (str, int, float, bool):
        return value
    return f"<{type(value).__name__}>"
