"""Host arrays on their way to the device."""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.kernels.cuda import is_reached, new_event, new_stream


def to_device(array: npt.NDArray[np.generic[Any]], device: torch.device) -> Tensor:
    """``array`` on ``device``; on CPU the same memory.

    A copy to CUDA is only queued. It goes through pinned memory, which torch reuses only once the
    copy is done. A copy from pageable memory would wait for the work queued before it.
    """
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class InputStream:
    """Where a step's inputs are copied and derived: on CUDA, a stream beside the one that computes.

    On CPU this does nothing, since everything happens at once. One thread may use :meth:`filling`
    and :meth:`arrival` while another computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._in_use: deque[tuple[object, torch.cuda.Event]] = deque()
        if device.type == "cuda":
            self._stream = new_stream(device)
            # This stream reads tables that the computing stream has made.
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def filling(self) -> AbstractContextManager[object]:
        """A context in which copies are queued on this stream."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def computing(self) -> AbstractContextManager[object]:
        """A context in which this device is the thread's current one."""
        return nullcontext() if self._stream is None else torch.cuda.device(self._device)

    def arrival(self) -> torch.cuda.Event | None:
        """When what was queued so far has arrived; None: it has."""
        if self._stream is None:
            return None
        event = new_event()
        event.record(self._stream)
        return event

    def await_arrival(self, arrival: torch.cuda.Event | None) -> None:
        """Make the computing stream wait for ``arrival``; the host goes on."""
        if arrival is not None:
            torch.cuda.current_stream(self._device).wait_event(arrival)

    def keep(self, inputs: object) -> None:
        """Hold ``inputs`` until the device has finished all computation queued so far.

        Their memory belongs to this stream, which would otherwise reuse it while the computing
        stream still reads it.
        """
        if self._stream is None:
            return
        done = new_event()
        done.record(torch.cuda.current_stream(self._device))
        self._in_use.append((inputs, done))
        while len(self._in_use) > 1 and is_reached(self._in_use[0][1]):
            self._in_use.popleft()
