"""An uploaded trace."""

from __future__ import annotations

from api.schemas.examples.engines import Json

SUMMARY: Json = {
    "id": "wl_0199aa10c0e7f3a91c2d4",
    "name": "code.csv",
    "form": "azure",
    "num_bytes": 331_904,
    "sha256": "9f2c3a0c1f4a54cbd1d64a4d9f7ccf7f18d8bb02ea17fdf6a4f0f5be2c3a77f1",
    "rows": 8819,
    "span_s": 3598.4,
    "rate_rps": 2.45,
    "created_by": "key_0199aa0fb1d2c3e4f5a6b",
    "created_at": "2026-11-29T12:00:00Z",
}
LENGTHS: Json = {"mean": 512.0, "p50": 480.0, "p95": 1400.0, "max": 7437}
WHOLE: Json = {
    **SUMMARY,
    "gap_cv": 2.1,
    "peak_to_mean_per_minute": 3.4,
    "input_tokens": LENGTHS,
    "output_tokens": {"mean": 27.0, "p50": 13.0, "p95": 81.0, "max": 1899},
    "joint_histogram": {
        "input_edges": [1, 2, 4],
        "output_edges": [1, 2],
        "counts": [[0, 0], [1200, 900], [4100, 2619]],
    },
    "over_time": {"bin_s": 1800.0, "counts": [4310, 4509]},
    "spread_s": 0.0,
    "cuts": [],
}
