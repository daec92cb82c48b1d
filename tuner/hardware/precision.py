"""Number formats a model is served in: what weights are stored as and products computed in."""

from __future__ import annotations

from enum import StrEnum

from engine.spec.model import DType
from engine.spec.names import did_you_mean
from engine.spec.quantisation import SCALE_BYTES
from tuner.hardware.block_scaled import BLOCK
from tuner.spec.errors import TunerError

# AWQ and GPTQ as they are published: 4 bits a weight and, for each group of 128 weights of one
# column, a scale in two bytes and a zero point of 4 bits.
INT4_GROUP = 128
INT4_BYTES = (4 + (16 + 4) / INT4_GROUP) / 8
# Kernels unpack 4-bit weights beside the products, so products bound by compute take longer than
# with 16-bit weights. This is a guess: Marlin's kernels (arXiv 2408.11743) come near the 16-bit
# rate at large batches on Ampere and stay further below it on Hopper.
UNPACKED_RATE = 0.8
_ALIASES = {
    "awq": "int4",
    "gptq": "int4",
    "w4a16": "int4",
    "half": "fp16",
    "float": "fp32",  # vLLM's words
}


class KvFormat(StrEnum):
    """What keys and values are kept in: ``auto`` is as activations are, ``fp8`` one byte each."""

    AUTO = "auto"
    FP8 = "fp8"

    def share_of(self, dtype: DType) -> float:
        """Bytes of a number kept so, as a share of those of an activation in ``dtype``."""
        return 1.0 if self is KvFormat.AUTO else 1.0 / dtype.num_bytes


class Precision(StrEnum):
    """``fp8`` and ``int4`` hold the layers' weights in one byte and in about half of one;
    activations, KV cache, collectives, embedding and head stay in bfloat16. Products with ``fp8``
    weights are computed in fp8, those with ``int4`` weights in bfloat16. ``fp8`` has a scale per
    matrix or row, ``fp8-block`` one per block of 128x128 weights and slower products."""

    FP64 = "fp64"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"
    FP8_BLOCK = "fp8-block"
    INT4 = "int4"

    @classmethod
    def of(cls, dtype: DType | Precision) -> Precision:
        """The precision that stores weights in ``dtype``."""
        if isinstance(dtype, Precision):
            return dtype
        return next(p for p in cls if not p.is_quantised and p.dtype is dtype)

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Read ``fp8`` or ``float8``, ``bf16`` or ``bfloat16`` and so on; ``awq`` and ``gptq`` are
        ``int4``.

        Raises:
            TunerError: another word, with the nearest and the known ones.
        """
        word = _ALIASES.get(text, text)
        for precision in cls:
            if word in (precision.value, precision.peak):
                return precision
        known = (*cls, *_ALIASES)
        raise TunerError(
            f"dtype {text!r} is not known{did_you_mean(text, known)}; known are {', '.join(known)}"
        )

    @property
    def is_quantised(self) -> bool:
        """Whether the layers' weights are narrower than activations."""
        return self.is_fp8 or self is Precision.INT4

    @property
    def is_fp8(self) -> bool:
        """Whether products are computed in fp8."""
        return self in (Precision.FP8, Precision.FP8_BLOCK)

    @property
    def estimated_from(self) -> str | None:
        """For a format whose products were never measured: what they are estimated from."""
        match self:
            case Precision.INT4:
                return "those in bf16"
            case Precision.FP8_BLOCK:
                return "those in fp8 and published times of a block-scaled product"
            case _:
                return None

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
            case Precision.BF16 | Precision.FP8 | Precision.FP8_BLOCK | Precision.INT4:
                return DType.BFLOAT16

    @property
    def peak(self) -> str:
        """The data sheet's name of the format that products are computed in."""
        return "float8" if self.is_fp8 else self.dtype.value

    @property
    def weight_bytes(self) -> float:
        """Bytes of one weight of a layer, with its share of scales and zero points."""
        match self:
            case Precision.FP8:
                return 1.0
            case Precision.FP8_BLOCK:
                return 1.0 + SCALE_BYTES / BLOCK**2
            case Precision.INT4:
                return INT4_BYTES
            case _:
                return float(self.dtype.num_bytes)

    @property
    def operand_bytes(self) -> int:
        """Bytes of what a weight is multiplied with."""
        return 1 if self.is_fp8 else self.dtype.num_bytes

    @property
    def compute_rate(self) -> float:
        """How fast products are, as a share of the rate for weights in :attr:`peak`'s format."""
        return UNPACKED_RATE if self is Precision.INT4 else 1.0

    @property
    def of_ends(self) -> Precision:
        """What embedding and head are in."""
        return Precision.BF16 if self.is_quantised else self

    @property
    def curve(self) -> str:
        """The format whose fitted curve applies: fp16 runs as fast as bf16, and products with int4
        weights are computed in bf16."""
        return "bfloat16" if self is Precision.FP16 else self.peak
