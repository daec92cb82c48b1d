"""Forecasters of a load: ours, and those that installed packages bring."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import structlog

from engine.spec.extensions import ExtensionPoint, make_extensions
from policies.forecasters import CONSTANT, FORECASTERS, Forecaster, Rates
from policies.load_history import LoadHistory
from tuner.spec.errors import TunerError

EXTENSIONS = ExtensionPoint.FORECASTERS


@dataclass(frozen=True, kw_only=True)
class Brought:
    """A forecaster of another package. If it raises, or its answer is no list of rates, that is
    logged and the constant forecaster answers: a control loop must not stop for it."""

    name: str
    forecaster: Forecaster

    def needs(self, slot_s: float, /) -> int:
        return self.forecaster.needs(slot_s)

    def predict(self, history: LoadHistory, horizon: int) -> Rates:
        try:
            rates = np.asarray(self.forecaster.predict(history, horizon), dtype=np.float64)
            if rates.shape != (horizon,) or not np.isfinite(rates).all() or (rates < 0).any():
                raise ValueError(f"{rates!r} are not {horizon} rates of at least 0")
        except Exception as error:
            structlog.get_logger().warning("forecaster_failed", name=self.name, error=repr(error))
            return CONSTANT.predict(history, horizon)
        return rates


def get_forecaster(name: str) -> Forecaster:
    """The one of that name.

    Raises:
        TunerError: there is none, with the known ones; or as for :func:`list_forecasters`.
    """
    known = {forecaster.name: forecaster for forecaster in list_forecasters()}
    if name not in known:
        raise TunerError(f"no forecaster {name!r}; known are {', '.join(known)}")
    return known[name]


def list_forecasters() -> tuple[Forecaster, ...]:
    """Ours, then those that installed packages bring (``EXTENSIONS``).

    Raises:
        TunerError: an extension that cannot be loaded, or has the name of one of ours.
    """
    brought: dict[str, Forecaster] = make_extensions(EXTENSIONS, TunerError)
    ours = [forecaster.name for forecaster in FORECASTERS]
    for name in brought:
        if name in ours:
            raise TunerError(
                f"extension {name!r} of {EXTENSIONS}: one of ours has that name, as have "
                f"{', '.join(ours)}; take another"
            )
    return (*FORECASTERS, *(Brought(name=name, forecaster=f) for name, f in brought.items()))
