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

    A copy to CUDA is only queued. It goes by way of pinned memory, which torch gives away again
    no earlier than the copy is done; from pageable memory it would wait for the work before it.
    """
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class InputStream:
    """Where a step's inputs are copied and derived: on CUDA a stream beside the one that computes.

    On CPU everything happens at once and this does nothing. One thread may use :meth:`filling`
    and :meth:`arrival` while another computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._in_use: deque[tuple[object, torch.cuda.Event]] = deque()
        if device.type == "cuda":
            self._stream = new_stream(device)
            # Tables made on the stream that computes are read on this one.
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def filling(self) -> AbstractContextManager[object]:
        """Within it, copies are queued on this stream."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def computing(self) -> AbstractContextManager[object]:
        """Within it, this device is the thread's own."""
        return nullcontext() if self._stream is None else torch.cuda.device(self._device)

    def arrival(self) -> torch.cuda.Event | None:
        """When what was queued so far has arrived; None: it has."""
        if self._stream is None:
            return None
        event = new_event()
        event.record(self._stream)
        return event

    def await_arrival(self, arrival: torch.cuda.Event | None) -> None:
        """Have the computing stream wait for it, not the host."""
        if arrival is not None:
            torch.cuda.current_stream(self._device).wait_event(arrival)

    def keep(self, inputs: object) -> None:
        """Hold ``inputs`` until the device has done all that is queued to compute.

        Their memory is this stream's, which would hand it out again while it is still read.
        """
        if self._stream is None:
            return
        done = new_event()
        done.record(torch.cuda.current_stream(self._device))
        self._in_use.append((inputs, done))
        while len(self._in_use) > 1 and is_reached(self._in_use[0][1]):
            self._in_use.popleft()
