"""The engine's side of the control plane: register, heartbeat, follow the policy.

The engine goes on serving whatever the control plane does: an outage is only silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import structlog

from api.agent.credential import CredentialFile
from api.agent.window import heartbeat
from api.documents.policy import limits_in, model_to_json, settings_in
from engine.engine import Engine
from engine.policy.document import EnginePolicy
from engine.spec.errors import EngineError
from engine.spec.request import FinishReason
from tuner.load.urls import full_url, key_headers

HEARTBEAT_S = 1.0
LONG_POLL_S = 20.0
# Between tries while the control plane cannot be reached or refuses us.
RETRY_S = 1.0
RETRY_REFUSED_S = 10.0
STOP_TIMEOUT_S = 5.0
CREDENTIAL_HEADER = "Gearshift-Engine-Credential"
Json = dict[str, Any]


class EngineAgent:
    """Keeps one engine known to a control plane, from a thread of its own.

    ``name`` is the engine's identity over restarts; its credential, kept in ``credential_dir``,
    proves it. A window whose heartbeat could not be sent is dropped: to the control plane it is
    missing data, never zero load.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        control_url: str,
        api_key: str | None,
        public_url: str | None,
        name: str | None = None,
        credential_dir: Path | None = None,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._engine = engine
        self._url = full_url(control_url)
        self._headers = key_headers(api_key)
        self._public_url = public_url
        self._model_name = engine.config.model_dir.resolve().name
        self._name = name or _default_name(self._model_name, public_url)
        self._credential = CredentialFile(credential_dir, control_url=self._url, name=self._name)
        self._heartbeat_s = heartbeat_s
        # Steps paced by a clock use no device; otherwise the service picks for the inventory.
        self._devices: list[int] | None = None if engine.paced_as is None else []
        self._engine_id: str | None = None
        self._handled_version = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="agent", daemon=True)
        self._is_up = threading.Event()
        self._log = structlog.get_logger("api.agent.agent").bind(engine=self._name)

    @property
    def engine_id(self) -> str | None:
        """The identity the control plane gave, None before the first registration."""
        return self._engine_id

    def start(self) -> None:
        """Begin; returns at once, whether or not the control plane can be reached."""
        self._thread.start()
        self._is_up.wait()

    def stop(self) -> None:
        """Tell the control plane that the engine ends, and end the thread."""
        loop, main = self._loop, self._main
        if loop is not None and main is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop may just have ended
                loop.call_soon_threadsafe(main.cancel)
        self._thread.join(STOP_TIMEOUT_S)
        self._credential.close()

    def _run(self) -> None:
        asyncio.run(self._live())

    async def _live(self) -> None:
        self._loop, self._main = asyncio.get_running_loop(), asyncio.current_task()
        self._is_up.set()
        timeout = httpx.Timeout(10.0, read=LONG_POLL_S + 10.0)
        async with httpx.AsyncClient(
            base_url=self._url, headers=self._headers, timeout=timeout
        ) as client:
            try:
                while True:
                    await self._serve(client)
            except asyncio.CancelledError:
                await self._deregister(client)

    async def _serve(self, client: httpx.AsyncClient) -> None:
        """Register and work until something unforeseen happens; that must not end the agent."""
        try:
            await self._register(client)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._beat(client))
                group.create_task(self._follow(client))
        except Exception:
            self._log.exception("agent failed; starting over")
            await asyncio.sleep(RETRY_REFUSED_S)

    # -- registration --------------------------------------------------------------------------

    async def _register(self, client: httpx.AsyncClient) -> None:
        answer = await self._insist(client, "POST", "/v1/engines", self._registration())
        if answer.get("credential"):
            self._credential.keep(answer["credential"])
        self._engine_id = answer["id"]
        self._handled_version = 0
        self._log.info("registered", engine_id=self._engine_id)

    def _registration(self) -> Json:
        engine = self._engine
        return {
            "name": self._name,
            "model_name": self._model_name,
            "public_url": self._public_url,
            "host": socket.gethostname(),
            "devices": self._devices,
            "model": model_to_json(engine.model),
            "envelope": asdict(engine.envelope),
            "inventory": engine.inventory.to_json(),
            "capabilities": [knob.to_json() for knob in engine.capabilities()],
            "policy": engine.policy.settings.to_json(),
            "takes_credential": True,
        }

    @property
    def _proof(self) -> dict[str, str]:
        text = self._credential.text
        return {} if text is None else {CREDENTIAL_HEADER: text}

    async def _deregister(self, client: httpx.AsyncClient) -> None:
        if self._engine_id is None:
            return
        with contextlib.suppress(httpx.HTTPError):
            await client.post(
                f"/v1/engines/{self._engine_id}:deregister", headers=self._proof, timeout=2.0
            )

    # -- heartbeats ----------------------------------------------------------------------------

    async def _beat(self, client: httpx.AsyncClient) -> None:
        before, since_s = self._engine.stats(), time.monotonic()
        self._engine.drain_timings()
        self._engine.drain_samples()
        is_silent = False
        while True:
            await asyncio.sleep(self._heartbeat_s)
            stats, now_s = self._engine.stats(), time.monotonic()
            body = heartbeat(
                window_s=now_s - since_s,
                now_s=now_s,
                before=before,
                stats=stats,
                policy=self._engine.policy,
                devices=self._devices,
                timings=self._engine.drain_timings(),
                samples=self._engine.drain_samples(),
            )
            before, since_s = stats, now_s
            is_sent = await self._send_beat(client, body)
            if is_sent == is_silent:
                self._log.warning("control plane is back" if is_sent else "control plane is away")
            is_silent = not is_sent

    async def _send_beat(self, client: httpx.AsyncClient, body: Json) -> bool:
        try:
            answer = await client.post(
                f"/v1/engines/{self._engine_id}/heartbeats", json=body, headers=self._proof
            )
        except httpx.HTTPError:
            return False
        if _is_stranger(answer):
            # Another engine has our name now: what is asked of it is not asked of us.
            self._engine_id = None
            await self._register(client)
        return answer.is_success

    # -- policy --------------------------------------------------------------------------------

    async def _follow(self, client: httpx.AsyncClient) -> None:
        while True:
            found = await self._next_policy(client)
            if found is None:
                continue
            version, document = found["version"], found["requested"]
            receipt = await asyncio.to_thread(self._apply, version, document)
            path = f"/v1/engines/{self._engine_id}/policy/versions/{version}:acknowledge"
            await self._insist(client, "POST", path, receipt)
            self._handled_version = version

    async def _next_policy(self, client: httpx.AsyncClient) -> Json | None:
        """A policy version not yet handled; None when the wait ended without one."""
        if self._engine_id is None:
            await asyncio.sleep(RETRY_S)
            return None
        try:
            answer = await client.get(
                f"/v1/engines/{self._engine_id}/policy",
                params={"wait_s": LONG_POLL_S, "after_version": self._handled_version},
                headers=self._proof,
            )
        except httpx.HTTPError:
            await asyncio.sleep(RETRY_S)
            return None
        if answer.status_code == httpx.codes.OK:
            found: Json = answer.json()
            return found
        if answer.status_code != httpx.codes.NO_CONTENT:
            await asyncio.sleep(RETRY_S)
        return None

    def _apply(self, version: int, document: Json) -> Json:
        """Put a version in force, or say why it cannot be."""
        errored = self._engine.stats().finished[FinishReason.ERROR]
        try:
            wanted = EnginePolicy(settings=settings_in(document), version=version)
            done = self._engine.apply(wanted, limits=limits_in(document))
        except EngineError as error:
            self._log.warning("policy refused", version=version, error=str(error))
            return {
                "result": "refused",
                "message": str(error),
                "lost_requests": max(
                    0, self._engine.stats().finished[FinishReason.ERROR] - errored
                ),
                "policy": self._engine.policy.settings.to_json(),
            }
        self._log.info("policy applied", version=version, changes=list(done.changes))
        return {
            "result": "applied",
            "message": "; ".join(done.warnings),
            "changes": {knob: kind.value for knob, kind in done.changes.items()},
            "seconds": done.seconds,
            "transition": done.transition and done.transition.to_json(),
            "lost_requests": max(0, self._engine.stats().finished[FinishReason.ERROR] - errored),
            "policy": done.policy.settings.to_json(),
        }

    async def _insist(self, client: httpx.AsyncClient, method: str, path: str, body: Json) -> Json:
        """Send until it is accepted; wait longer after a refusal than after no answer.

        That the service does not know the engine (any more) counts as an answer: the next heartbeat
        registers it.
        """
        while True:
            try:
                answer = await client.request(method, path, json=body, headers=self._proof)
            except httpx.HTTPError as error:
                self._log.warning("control plane not reached", error=str(error))
                await asyncio.sleep(RETRY_S)
                continue
            if answer.is_success or _is_stranger(answer):
                found: Json = answer.json()
                return found
            self._log.error("control plane refuses", status=answer.status_code, body=answer.text)
            await asyncio.sleep(RETRY_REFUSED_S)


def _is_stranger(answer: httpx.Response) -> bool:
    """Whether the service says that it does not know us, or that we are another engine."""
    if answer.status_code == httpx.codes.FORBIDDEN:
        return bool(answer.json().get("code") == "not_this_engine")
    return answer.status_code == httpx.codes.NOT_FOUND


def _default_name(model_name: str, public_url: str | None) -> str:
    """MODEL@HOST:PORT, so that two engines of one model on one host are two engines."""
    port = urlsplit(public_url).port if public_url else None
    host = socket.gethostname()
    return f"{model_name}@{host}:{port}" if port else f"{model_name}@{host}"
