"""Chat templates render as ``transformers`` renders them, and whatever they do stays inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from engine.models.create import create_model
from engine.spec.errors import CheckpointError, RequestError
from engine.text.templates import ChatTemplates
from engine.text.tokenizer import Tokenizer

# In the style of families of models, each with what its like asks of Jinja.
FAMILIES = Path(__file__).parent / "families"
TEMPLATES = {path.stem: path.read_text() for path in sorted(FAMILIES.glob("*.jinja"))}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Tells the \u5929\u6c17 <now> & 'then'",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    for name in ("get_weather", "get_time")
]
SYSTEM = {"role": "system", "content": "Be brief & <exact>."}
ASKED = {"role": "user", "content": "  Wie ist das W\u00e9tter?\n"}
ANSWERED = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nSunny \u2600."}
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "abcdefghi",
            "type": "function",
            "function": {"name": "get_weather", "arguments": {"city": "Z\u00fcrich", "n": 1.5}},
        }
    ],
}
CALLED_TWICE = CALLED | {
    "content": "Let me look.",
    "tool_calls": CALLED["tool_calls"] * 2,
}
RESULT = {
    "role": "tool",
    "name": "get_weather",
    "tool_call_id": "abcdefghi",
    "content": '{"t": 21}',
}
THOUGHT = {"role": "assistant", "content": "Yes.", "reasoning": "I think so.", "name": None}
BLOCKS = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [ASKED],
    "system": [SYSTEM, ASKED],
    "turns": [SYSTEM, ASKED, ANSWERED, ASKED],
    "called": [ASKED, CALLED, RESULT],
    "called twice": [SYSTEM, ASKED, CALLED_TWICE, RESULT, RESULT],
    "called and answered": [SYSTEM, ASKED, CALLED, RESULT, ANSWERED, ASKED],
    "thought": [ASKED, THOUGHT],
    "blocks": [BLOCKS],
    "twice a user": [ASKED, ASKED],
}
WISHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tools": {"tools": TOOLS},
    "no prompt": {"add_generation_prompt": False},
    "documents": {"documents": [{"title": "A", "text": "b"}]},
    "variables": {"variables": {"enable_thinking": False, "thinking": True, "cls_token": "C"}},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    create_model(folder, preset="tiny", seed=3)
    return folder


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_every_family_of_templates_renders_as_transformers_does(made: Path, name: str) -> None:
    (made / "chat_template.jinja").write_text(TEMPLATES[name])
    theirs, ours = AutoTokenizer.from_pretrained(made), Tokenizer.from_dir(made)
    num_rendered = 0
    for conversation in CONVERSATIONS.values():
        for wish in WISHES.values():
            options = {"add_generation_prompt": True} | wish
            flat = options | options.get("variables", {})
            flat.pop("variables", None)
            try:
                wanted = theirs.apply_chat_template(conversation, tokenize=False, **flat)
            except Exception:
                with pytest.raises(RequestError, match="messages: the chat template refuses"):
                    ours.chat_text(conversation, **options)
            else:
                num_rendered += 1
                assert ours.chat_text(conversation, **options) == wanted
    assert num_rendered >= 10


def test_named_templates_are_picked_as_transformers_picks_them(made: Path) -> None:
    (made / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((made / "tokenizer_config.json").read_text())
    named = [{"name": n, "template": n} for n in ("rag", "default", "tool_use")]
    (made / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": named}))
    theirs, ours = AutoTokenizer.from_pretrained(made), Tokenizer.from_dir(made)
    for tools in (None, [], TOOLS):
        wanted = theirs.apply_chat_template([ASKED], tools=tools, tokenize=False)
        assert ours.chat_text([ASKED], tools=tools) == wanted


def render(template: str, **variables: Any) -> str:
    return ChatTemplates({"default": template}, {}).render([ASKED], variables=variables)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ {'b': '\u00e9<', 'a': 1} | tojson }}", '{"b": "\u00e9<", "a": 1}'),
        ("{{ {'b': '\u00e9'} | tojson(ensure_ascii=true) }}", '{"b": "\\u00e9"}'),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}", '{"a":2,"b":1}'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{{ tools is none }}{{ documents is none }}", "TrueTrue"),
        ("{% generation %}{{ 1 }}{% endgeneration %}", "1"),
        ("{{ dict(a=1).a }}{{ dict.fromkeys(['k'], 2).k }}", "12"),
        ("{% set n = namespace(self=4) %}{% set n.x = 5 %}{{ n.self }}{{ n.x }}", "45"),
        ("{{ strftime_now('%%%z') }}", "%"),
    ],
)
def test_what_templates_may_use(template: str, text: str) -> None:
    assert render(template) == text


@pytest.mark.parametrize(
    "template",
    [
        "{{ namespace(__class__=1) }}",
        "{% set n = namespace() %}{% set n._x = 1 %}",
        "{{ dict.__class__.x }}",
        "{{ dict.fromkeys.__globals__.x }}",
        "{{ ().__class__.__bases__ }}",
        "{{ tools | tojson(indent=raise_exception) }}",
        "{{ 1 // 0 }}",
        "{{ messages[0].content.nothing.more }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_that_reaches_out_or_breaks_is_a_refusal(template: str) -> None:
    with pytest.raises(RequestError, match="the chat template refuses them"):
        render(template)


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_a_callers_variable_is_none_of_the_conversations_own(name: str) -> None:
    with pytest.raises(RequestError, match=f"{name} is no variable"):
        render("x", **{name: 1})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "function", "name"]), inner, max_size=3
        )
    ),
    max_leaves=5,
)
KEYS = st.sampled_from(["role", "content", "tool_calls", "reasoning", "thinking", "name"])
PARTS = st.sampled_from(
    ["{{", "}}", "{%", "%}", " for m in messages ", " endfor ", " if ", " generation ", "m.content",
     " endgeneration ", "messages", "|tojson", "[0]", "(", ")", "namespace", ".x", "-", "1", "'"]
)  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(
    name=st.sampled_from(list(TEMPLATES)),
    messages=st.lists(st.dictionaries(KEYS, JSON, max_size=4), max_size=3),
    tools=st.none() | st.lists(st.dictionaries(KEYS, JSON, max_size=2), max_size=2),
)
def test_any_messages_become_text_or_are_refused(
    name: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> None:
    templates = ChatTemplates({"default": TEMPLATES[name]}, {"bos_token": "<s>"})
    try:
        assert isinstance(templates.render(messages, tools=tools), str)
    except RequestError as error:
        assert str(error).startswith("messages: ")  # noqa: PT017 - it need not come to that


@settings(max_examples=300, deadline=None)
@given(parts=st.lists(PARTS, max_size=12))
def test_any_template_is_read_or_the_checkpoints_fault(parts: list[str]) -> None:
    try:
        templates = ChatTemplates({"default": "".join(parts)}, {})
    except CheckpointError as error:
        assert str(error).startswith("chat template: ")  # noqa: PT017 - it need not come to that
        return
    try:
        templates.render([ASKED])
    except RequestError as error:
        assert str(error).startswith("messages: ")  # noqa: PT017 - it need not come to that
