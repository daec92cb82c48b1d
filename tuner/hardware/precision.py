"""Number formats a model is served in: what weights are stored as and products computed in."""

from __future__ import annotations

from enum import StrEnum

from engine.spec.model import DType
from engine.spec.names import did_you_mean
from tuner.spec.errors import TunerError


class Precision(StrEnum):
    """``fp8`` holds the layers' weights in one byte; activations, KV cache, collectives,
    embedding and head stay in bfloat16."""

    FP64 = "fp64"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"

    @classmethod
    def of(cls, dtype: DType | Precision) -> Precision:
        """The precision that stores weights in ``dtype``."""
        if isinstance(dtype, Precision):
            return dtype
        return next(p for p in cls if p is not cls.FP8 and p.dtype is dtype)

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Read ``fp8`` or ``float8``, ``bf16`` or ``bfloat16`` and so on.

        Raises:
            TunerError: another word, with the known ones.
        """
        for precision in cls:
            if text in (precision.value, precision.peak):
                return precision
        raise TunerError(
            f"dtype {text!r} is not known{did_you_mean(text, cls)}; known are {', '.join(cls)}"
        )

    @property
    def dtype(self) -> DType:
        """What activations and the KV cache are in."""
        match self:
            case Precision.FP64:
                return DType.FLOAT64
            case Precision.FP32:
                return DType.FLOAT32
            case Precision.FP16:
                return DType.FLOAT16
            case Precision.BF16 | Precision.FP8:
                return DType.BFLOAT16

    @property
    def peak(self) -> str:
        """The data sheet's name of the format that products are computed in."""
        return "float8" if self is Precision.FP8 else self.dtype.value

    @property
    def weight_bytes(self) -> int:
        """Bytes of one weight of a layer."""
        return 1 if self is Precision.FP8 else self.dtype.num_bytes

    @property
    def of_ends(self) -> Precision:
        """What embedding and head are in."""
        return Precision.BF16 if self is Precision.FP8 else self

    @property
    def curve(self) -> str:
        """The format whose fitted curve applies: fp16 runs as fast as bf16."""
        return "bfloat16" if self is Precision.FP16 else self.peak
