"""Whose prompts share blocks of the prefix cache."""

from __future__ import annotations

from tests.engine.server.conftest import Server

PROMPT = list(range(100, 164))


def _tokens_from_cache(server: Server, **salt: str) -> int:
    before = server.engine.stats().prefix_hits
    reply = server.complete(prompt=PROMPT, max_tokens=1, **salt)
    assert reply.status_code == 200, reply.text
    return server.engine.stats().prefix_hits - before


def test_prompts_of_different_salts_share_nothing(server: Server) -> None:
    assert _tokens_from_cache(server, cache_salt="one tenant") == 0
    assert _tokens_from_cache(server, cache_salt="another") == 0
    assert _tokens_from_cache(server) == 0, "how long it takes would tell what others have asked"
    assert _tokens_from_cache(server, cache_salt="one tenant") > 0
    assert _tokens_from_cache(server) > 0


def test_an_empty_salt_is_refused_and_half_a_character_hurts_nobody(server: Server) -> None:
    refused = server.complete(prompt=PROMPT, max_tokens=1, cache_salt="")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "cache_salt"
    body = b'{"model": "tiny", "prompt": [5, 6], "max_tokens": 1, "cache_salt": "\\ud800"}'
    headers = {"Content-Type": "application/json"}
    server.http.post("/v1/completions", content=body, headers=headers)
    assert server.complete(prompt=[5, 6], max_tokens=1).status_code == 200
