"""What the description says of answers is what comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from engine.server import knob_shapes, shapes
from engine.server.keys import ServerKeys
from tests.engine.server.conftest import MODEL, Server, serving, simulated_engine
from tests.examples import check_examples, list_operations

Json = dict[str, Any]
ASKS = {"max_tokens": 3, "return_token_ids": True}
STREAMED = {**ASKS, "stream": True, "stream_options": {"include_usage": True}}
TOLD = {**ASKS, "prompt_logprobs": 1}
HELLO = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]


@pytest.fixture(scope="module")
def paced(tiny_dir: Path) -> Iterator[Server]:
    with (
        simulated_engine(tiny_dir, step_s=0.001) as engine,
        serving(engine, tiny_dir, keys=ServerKeys(api="k")) as running,
    ):
        running.http.headers["Authorization"] = "Bearer k"
        yield running


@pytest.fixture(scope="module")
def document(paced: Server) -> Json:
    found: Json = paced.http.get("/openapi.json", headers={"Authorization": ""}).json()
    return found


def _is(shape: type[BaseModel], found: Any) -> None:
    shape.model_validate(found, strict=False)


def _chunks(reply: httpx.Response) -> list[str]:
    data = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
    assert data[-1] == "[DONE]"
    return data[:-1]


def test_answers_have_the_fields_that_are_described_and_no_others(server: Server) -> None:
    http = server.http
    for path, shape in (
        ("/v1/models", shapes.ModelListShape),
        (f"/v1/models/{MODEL}", shapes.ModelShape),
        ("/health", shapes.HealthShape),
        ("/version", shapes.VersionShape),
        ("/v1/engine/capabilities", knob_shapes.CapabilitiesShape),
        ("/v1/engine/policy", knob_shapes.PolicyShape),
        ("/v1/engine/mode-table", knob_shapes.ModeRuleShape),
    ):
        _is(shape, http.get(path).json())
    _is(shapes.CompletionShape, server.complete(prompt="x", logprobs=2, **TOLD).json())
    chat = server.chat(messages=HELLO, logprobs=True, top_logprobs=2, **TOLD).json()
    _is(shapes.ChatShape, chat)
    for chunk in _chunks(server.complete(prompt="x", logprobs=2, **STREAMED)):
        shapes.CompletionShape.model_validate_json(chunk)
    for chunk in _chunks(server.chat(messages=HELLO, logprobs=True, **STREAMED)):
        shapes.ChatChunkShape.model_validate_json(chunk)
    ids = http.post("/tokenize", json={"prompt": "a b", "return_token_strs": True}).json()
    _is(shapes.TokenizedShape, ids)
    text = http.post("/detokenize", json={"tokens": ids["tokens"]}).json()
    _is(shapes.DetokenizedShape, text)
    _is(shapes.ErrorAnswer, server.complete(prompt="x", max_tokens="many").json())
    problem = http.patch("/v1/engine/policy", json={"turbo": 1}, headers={"If-Match": "*"})
    _is(shapes.Problem, problem.json())


def test_the_table_and_a_changed_policy_are_as_described(paced: Server) -> None:
    for patch in ({"mode": "base"}, {}, {"caps": {"max_num_seqs": 7, "max_step_ms": 45}}):
        answer = paced.http.patch("/v1/engine/policy", json=patch, headers={"If-Match": "*"})
        _is(knob_shapes.PolicyChangeShape, answer.json())


def test_every_operation_has_an_id_and_says_how_it_refuses(document: Json) -> None:
    assert document["openapi"].startswith("3.1")
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation["operationId"], path
            answers = operation["responses"]
            assert "422" not in answers or path.startswith("/v1/engine")
            assert (
                ("401" in answers)
                == ("security" in operation)
                == path.startswith(("/v1", "/tokenize", "/detokenize"))
            ), path
            if method in ("post", "patch"):
                content = operation["requestBody"]["content"].values()
                assert any("examples" in described for described in content), path
                assert {"400", "413"} <= answers.keys(), path


def test_the_description_names_the_model_and_its_examples_are_answered(
    document: Json, server: Server
) -> None:
    body = document["components"]["schemas"]["CompletionBody"]["properties"]
    assert body["model"]["enum"] == [MODEL]
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        for name, example in content["application/json"]["examples"].items():
            answer = server.http.post(path, json=example["value"])
            assert answer.status_code == 200, (path, name, answer.text)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"temperature": "0.5"}, '"0.5" is not a number'),
        ({"max_tokens": "4"}, '"4" is not a number'),
        ({"stream": "true"}, "valid boolean"),
        ({"ignore_eos": 1}, "valid boolean"),
    ],
)
def test_a_text_is_no_number_and_a_number_no_flag(server: Server, body: Json, said: str) -> None:
    reply = server.complete(prompt="x", **body)
    assert reply.status_code == 400
    assert said in reply.json()["error"]["message"]


def test_a_whole_number_may_be_written_with_a_point(server: Server) -> None:
    assert server.complete(prompt="x", max_tokens=2.0).status_code == 200


def test_a_method_that_a_path_has_not_is_405_with_those_it_has(paced: Server) -> None:
    for path, methods in (("/v1/engine/policy", "GET, PATCH"), (f"/v1/models/{MODEL}", "GET")):
        answer = paced.http.options(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, methods)


def test_every_operation_shows_examples_that_its_schemas_take(document: Json) -> None:
    assert check_examples(document) > 15
    for path, names in (
        ("/v1/chat/completions", lambda shown: [shown["model"]]),
        ("/v1/models", lambda shown: [card["id"] for card in shown["data"]]),
    ):
        (operation,) = document["paths"][path].values()
        shown = operation["responses"]["200"]["content"]["application/json"]["example"]
        assert names(shown) == [MODEL]


def test_no_operation_changes_its_name_unseen(document: Json) -> None:
    """Clients are made from the names: add to the list, and rename nothing in it."""
    known = Path(__file__).with_name("operations.txt").read_text().splitlines()
    assert list_operations(document) == known
