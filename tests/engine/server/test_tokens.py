"""Tokens, version and liveness under the names other servers gave them."""

from __future__ import annotations

from tests.engine.server.conftest import MODEL, Server


def test_a_text_comes_back_from_its_tokens(server: Server) -> None:
    found = server.http.post("/tokenize", json={"prompt": "The engine", "return_token_strs": True})
    body = found.json()
    assert body["tokens"] == server.tokenizer.encode("The engine")
    assert body["count"] == len(body["tokens"]) == len(body["token_strs"])
    assert body["max_model_len"] == server.engine.max_model_len
    plain = {"model": MODEL, "prompt": "The engine", "add_special_tokens": False}
    ids = server.http.post("/tokenize", json=plain).json()["tokens"]
    assert server.http.post("/detokenize", json={"tokens": ids}).json() == {"prompt": "The engine"}


def test_token_texts_come_only_where_asked_for(server: Server) -> None:
    body = server.http.post("/tokenize", json={"prompt": "The engine"}).json()
    assert body["token_strs"] is None


def test_a_conversation_is_tokenised_as_a_chat_would_be(server: Server) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    tokens = server.http.post("/tokenize", json={"messages": messages}).json()["tokens"]
    assert tokens == server.chat_tokens(messages)


def test_a_call_for_nothing_for_both_or_for_another_model_is_refused(server: Server) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    for body in ({}, {"prompt": "x", "messages": messages}):
        reply = server.http.post("/tokenize", json=body)
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == "prompt"
    reply = server.http.post("/detokenize", json={"model": "another", "tokens": [5]})
    assert reply.status_code == 404
    assert server.http.post("/detokenize", json={"tokens": [-1]}).status_code == 400


def test_version_and_liveness_need_nothing(server: Server) -> None:
    assert server.http.get("/version").json()["version"]
    assert server.http.get("/ping").json() == {"status": "ok"}
