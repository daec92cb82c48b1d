"""Keys and the audit trail."""

from __future__ import annotations

from api.schemas.examples.engines import ENGINE_ID, Json

KEY_ID = "key_0199aa0fb1d2c3e4f5a6b"
CREATE: Json = {"name": "ci", "scopes": ["tune", "apply"]}
ROTATE: Json = {"overlap_s": 3600}
KEY: Json = {
    "id": KEY_ID,
    **CREATE,
    "prefix": "gs_0123456",
    "created_at": "2026-11-29T12:00:00Z",
    "expires_at": None,
    "revoked_at": None,
    "last_used_at": "2026-11-29T12:30:00Z",
}
CREATED: Json = {
    **KEY,
    "last_used_at": None,
    "secret": "gs_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG",
}
ROTATED: Json = {**CREATED, "id": "key_0199aa13d4e5f6a7b8c9d", "replaces": KEY_ID}
ENTRY: Json = {
    "id": 41,
    "actor": KEY_ID,
    "action": "policy.operator",
    "resource": f"engines/{ENGINE_ID}/policy",
    "before_hash": "2d7997a533e2b125c73eec89d213bb7b7f945e0862ee8725c68d837d22e9b697",
    "after_hash": "f2882fb0def56d6a4a394afb539bbbeed5f1d99ba57b3361353f5300575bee08",
    "reason": "room for the evening",
    "request_id": "b50159a6b2874a3ca637d67bff56f965",
    "previous_hash": "08d2fc2db95fe1d548a68509e38a100684be8cecbfee3ea0e9111bf587f4e6bf",
    "hash": "3a4ca0d991d8f58a30333b4a120a245edc68220ece80b3ecce9e44e1dbfa95cf",
    "created_at": "2026-11-29T12:05:00Z",
}
VERDICT: Json = {
    "is_whole": False,
    "num_entries": 41,
    "last_hash": None,
    "broken_id": 41,
    "reason": "it was altered: its hash is not that of what it says",
    "has_head": None,
}
