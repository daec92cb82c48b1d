"""What chat templates are told beside the conversation, held against ``transformers``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from engine.models.create import create_model
from tests.engine.server.conftest import MODEL, Server, refusal, serving, simulated_engine

TEMPLATE = """\
{%- if tools %}[tools {{ tools | tojson }}]{% endif -%}
{%- if documents %}[documents {{ documents | tojson }}]{% endif -%}
{%- if tool_choice is defined %}[choice {{ tool_choice }}]{% endif -%}
{%- for message in messages -%}
<{{ message.role }}>{{ message.content }}
{%- if 'tool_calls' in message -%}[calls]
{%- for call in message.tool_calls %}{call {{ call.function.name }}
{%- for key, value in call.function.arguments.items() %} {{ key }}={{ value }}{% endfor %}}
{%- endfor -%}
{%- endif -%}
{%- if message.tool_call_id %}(for {{ message.tool_call_id }}){% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<assistant>{% if enable_thinking is defined and enable_thinking %}\
<think>{% endif %}{% endif -%}
"""
NAMED = {"type": "function", "function": {"name": "w"}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
HELLO = [{"role": "user", "content": "Hello"}]


def called(arguments: object) -> list[dict[str, Any]]:
    """A conversation in which the assistant has called a tool."""
    function = {"name": "weather", "arguments": arguments}
    return [
        *HELLO,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("telling") / "model"
    create_model(folder, preset="tiny", seed=1)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def telling(folder: Path) -> Iterator[Server]:
    with simulated_engine(folder, step_s=0.001) as engine, serving(engine, folder) as running:
        yield running


def tokens(server: Server, **body: Any) -> list[int]:
    reply = server.http.post("/tokenize", json={"model": MODEL, **body})
    assert reply.status_code == 200, reply.text
    found: list[int] = reply.json()["tokens"]
    return found


@pytest.mark.parametrize(
    ("body", "template_values"),
    [
        ({}, {}),
        ({"chat_template_kwargs": {"enable_thinking": True}}, {"enable_thinking": True}),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
        ({"tools": TOOLS}, {"tools": TOOLS}),
        ({"tools": []}, {}),
        ({"tools": TOOLS, "tool_choice": "required"}, {"tools": TOOLS, "tool_choice": "required"}),
        ({"documents": [{"title": "t"}]}, {"documents": [{"title": "t"}]}),
        ({"chat_template_kwargs": {"tool_choice": 3}}, {"tool_choice": 3}),
    ],
)
def test_a_template_is_told_what_transformers_would_tell_it(
    telling: Server, folder: Path, body: dict[str, Any], template_values: dict[str, Any]
) -> None:
    reference = AutoTokenizer.from_pretrained(folder)
    wanted = reference.apply_chat_template(
        HELLO, add_generation_prompt=True, tokenize=True, return_dict=False, **template_values
    )
    assert tokens(telling, messages=HELLO, **body) == wanted
    chat = telling.chat(messages=HELLO, max_tokens=1, **body)
    assert chat.json()["usage"]["prompt_tokens"] == len(wanted)


def test_arguments_of_tool_calls_reach_the_template_as_values(
    telling: Server, folder: Path
) -> None:
    values = {"city": "Zürich", "days": 2}
    reference = AutoTokenizer.from_pretrained(folder)
    wanted = reference.apply_chat_template(
        called(values), add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert tokens(telling, messages=called(json.dumps(values))) == wanted
    assert tokens(telling, messages=called(values)) == wanted
    bare = tokens(telling, messages=called({}))
    assert tokens(telling, messages=called("")) == tokens(telling, messages=called(None)) == bare
    # The `openai` client writes null for what a message does not have.
    nulls = [{**HELLO[0], "tool_calls": None, "name": None}]
    assert tokens(telling, messages=nulls) == tokens(telling, messages=HELLO)


def test_an_answer_with_an_empty_list_of_calls_is_one_without(telling: Server) -> None:
    said = {"role": "assistant", "content": "Hi"}
    empty = [*HELLO, {**said, "tool_calls": []}, *HELLO]
    assert tokens(telling, messages=empty) == tokens(telling, messages=[*HELLO, said, *HELLO])


def test_a_prompt_may_end_where_the_conversation_does(telling: Server) -> None:
    whole = tokens(telling, messages=HELLO)
    shorter = tokens(telling, messages=HELLO, add_generation_prompt=False)
    assert whole[: len(shorter)] == shorter != whole


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
        ({"tools": "weather"}, "tools"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice"),
        ({"tool_choice": {"function": {"name": "w"}}, "tools": [{"function": "w"}]}, "tool_choice"),
        (
            {"tool_choice": {"function": {"name": "w"}}, "tools": [{"function": None}]},
            "tool_choice",
        ),
        ({"messages": called("{")}, "messages"),
        ({"messages": called("[1]")}, "messages"),
        ({"messages": called([1])}, "messages"),
        ({"chat_template_kwargs": {"tools": 1}, "messages": called(3)}, "messages"),
    ],
)
def test_what_a_template_cannot_be_told_is_a_400_that_names_it(
    telling: Server, body: dict[str, Any], param: str
) -> None:
    assert refusal(telling.chat(**{"messages": HELLO, **body}))["param"] == param
    reply = telling.http.post("/tokenize", json={"messages": HELLO, **body})
    assert refusal(reply)["param"] == param
