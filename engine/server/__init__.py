"""OpenAI-compatible serving of one engine, its metrics and its knobs."""

from engine.server.app import create_server

__all__ = ["create_server"]
