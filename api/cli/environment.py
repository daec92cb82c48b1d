"""Variables of the environment that look like ours and are read by nothing."""

from __future__ import annotations

import os
from difflib import get_close_matches

from api.cli.common import log

PREFIX = "GEARSHIFT_"
# Variables beside the service's settings: keys, the retries of commands, the user's folder,
# switches of the engine.
OTHERS = frozenset(
    f"{PREFIX}{name}"
    for name in (
        "ENGINE_KEY",
        "KNOB_KEY",
        "CONTROL_KEY",
        "CONTROL_RETRIES",
        "SERVICE",
        "CATALOG",
        "DATA_DIR",
        "NO_COMPILER",
        "ONE_SHOT_SUMS",
        "INSTRUCTIONS",
        "DEPENDENT_LAUNCH",
    )
)


def known_variables() -> frozenset[str]:
    """Every variable with our prefix that anything reads."""
    from api.web.settings import ServiceSettings

    return OTHERS | {f"{PREFIX}{name.upper()}" for name in ServiceSettings.model_fields}


def warn_about_variables() -> None:
    """Name each variable with our prefix that nothing reads, and the one that may be meant."""
    ours = {name for name in os.environ if name.upper().startswith(PREFIX)}
    if ours <= OTHERS:  # without a look at the settings, which take a while to load
        return
    known = known_variables()
    for name in sorted(ours):
        if name.upper() not in known:
            nearest = get_close_matches(name.upper(), known, n=1, cutoff=0.8)
            way_out = (
                f"did you mean {nearest[0]}?" if nearest else "'gearshift serve --help' lists them"
            )
            log(f"warning: {name} is none of the variables that are read; {way_out}")
