"""Steps: what the scheduler sends to ranks, what comes back, and the sample each step leaves.

Every message between processes is a struct of this file, encoded by msgspec (never pickle).
Arrays travel as raw little-endian bytes beside their dtype's fixed name.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from engine.spec.modes import BASE, MODE_PATTERN, Mode

Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]
UInt64Array = npt.NDArray[np.uint64]

ModeName = Annotated[Mode, msgspec.Meta(pattern=MODE_PATTERN)]

# Stands for the id of a row whose logits held no finite value: there is nothing to choose from.
NO_TOKEN = -1


class StepShape(msgspec.Struct, frozen=True, kw_only=True):
    """The size of one step: everything its time depends on.

    ``decode_context_tokens`` sums the KV length each decode token attends to;
    ``prefill_attention_pairs`` sums query-key pairs of prefill chunks,
    ``q*context + q*(q+1)/2`` per chunk; ``prefill_context_tokens`` sums the KV length read.
    """

    mode: ModeName = BASE
    num_seqs: int = 0
    num_decode_tokens: int = 0
    num_prefill_tokens: int = 0
    decode_context_tokens: int = 0
    prefill_context_tokens: int = 0
    prefill_attention_pairs: int = 0
    num_sampled: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens in the step, n of the shift rule."""
        return self.num_decode_tokens + self.num_prefill_tokens


class SlotSampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the sequence in a slot is sampled; the fields are those of ``SamplingParams``.

    ``num_logprobs``: how many of the best tokens' log probabilities to tell beside the chosen
    one's; -1 tells none at all. ``num_prompt_logprobs``: the same of the prompt's own tokens.
    ``banned_ids`` get no probability before ``min_tokens`` outputs.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    min_tokens: int = 0
    banned_ids: tuple[int, ...] = ()
    seed: int = 0
    choice: int = 0
    num_logprobs: int = -1
    num_prompt_logprobs: int = -1

    @property
    def has_penalties(self) -> bool:
        """Whether the tokens so far change the next one's scores."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


class SlotStart(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A sequence takes a slot of every rank's table; whatever the slot held is forgotten.

    ``num_computed`` tokens are in the KV cache already, in ``blocks`` i4 (prefix reuse).
    ``token_ids`` i4 are the known tokens from there on; tokens after them are the rank's own
    samples. ``past_ids`` i4 are those before ``num_computed``, sent only with penalties. The
    first ``prompt_len`` tokens of all are the prompt.
    """

    slot: int
    prompt_len: int
    token_ids: bytes
    num_computed: int = 0
    past_ids: bytes = b""
    blocks: bytes = b""
    sampling: SlotSampling = SlotSampling()


class StepPlan(msgspec.Struct, tag="step", kw_only=True, omit_defaults=True):
    """One step for every rank of a replica: what changed since the step before.

    Ranks keep block tables, lengths, last tokens and sampling values by slot (see
    ``engine.wire.rank_table``) and decide nothing. In this order: ``starts`` fill slots, then block
    ``grown_blocks`` i4[K] is appended to slot ``grown_slots`` i4[K], then the S rows run:
    ``slots`` i4[S] with ``query_lens`` i4[S] new tokens each (empty: one each). A row whose new
    tokens reach the end of its known ones is sampled. Simulated steps carry the shape only.
    """

    step_id: int
    shape: StepShape
    starts: list[SlotStart] = []
    grown_slots: bytes = b""
    grown_blocks: bytes = b""
    slots: bytes = b""
    query_lens: bytes = b""
    return_logits: bool = False

    @property
    def mode(self) -> Mode:
        return self.shape.mode


class LogprobArrays(msgspec.Struct, frozen=True, kw_only=True):
    """Log probabilities at R positions under the model's own logits: ``ids`` i4[R, 1+K] hold the
    position's token and the K best, ``logprobs`` f4[R, 1+K] theirs, and ``ranks`` i4[R] the token's
    place (1 = most likely). K is the most any row asked for.
    """

    num_best: int
    ids: bytes
    logprobs: bytes
    ranks: bytes


class StepResult(msgspec.Struct, tag="result", kw_only=True, omit_defaults=True):
    """What the last stage's first rank answers: ``token_ids`` i4[R] of the sampled rows in order,
    ``NO_TOKEN`` where a row's logits held no finite value.

    ``logits`` (f8[R, vocab_size], only when asked for) are the model's own. ``sampled_logprobs``
    are of the sampled rows, ``prompt_logprobs`` of the tokens that follow the positions of prompts
    which the step computed (:func:`num_scored`), row after row; None where nobody asked.

    Times are seconds on that rank. ``idle_s`` is from the end of its last step to the arrival of
    this plan (0 in the first step). ``input_s`` is for reading and copying the plan;
    ``input_exposed_s`` of that held up the forward pass. ``communication_s`` is inside collectives,
    ``forward_s`` is the rest of the forward pass, and ``sample_s`` is the sampler.
    """

    step_id: int
    token_ids: bytes = b""
    logits: bytes | None = None
    sampled_logprobs: LogprobArrays | None = None
    prompt_logprobs: LogprobArrays | None = None
    idle_s: float = 0.0
    input_s: float = 0.0
    input_exposed_s: float = 0.0
    forward_s: float = 0.0
    communication_s: float = 0.0
    sample_s: float = 0.0

    @property
    def rank_s(self) -> float:
        """Seconds from when the answering rank had this step to its end."""
        return self.input_exposed_s + self.forward_s + self.communication_s + self.sample_s


def size_class(num_tokens: int) -> int:
    """The most tokens of a step's size class: the power of two that it fits in."""
    return 1 << max(0, num_tokens - 1).bit_length()


class StepSample(msgspec.Struct, frozen=True, kw_only=True):
    """Telemetry of one step, always on; feeds metrics and the cost model.

    ``start_s`` is on the engine's clock. ``step_s`` is how long the ranks worked on it: from the
    result before it, or from its submission if they stood idle, to its own result. With several
    stages steps overlap, and ``busy_s`` leaves out the overlap with the step before. A part's
    ``*_exposed_s`` is the part of it that did not run behind a step in flight; forward,
    communication and sampling are the step itself. ``bubble_s`` is how long the ranks waited for
    the host before it, while there was work. ``other_mode_s`` is the mode table's time for the
    quickest mode not chosen; ``regret_s`` is how much quicker it would have been (0 when the choice
    was right).
    """

    step_id: int
    plan: str
    replica: int
    shape: StepShape
    padded_tokens: int
    start_s: float
    step_s: float
    schedule_s: float
    input_s: float
    forward_s: float
    communication_s: float
    sample_s: float
    output_s: float
    kv_usage: float
    schedule_exposed_s: float = 0.0
    input_exposed_s: float = 0.0
    output_exposed_s: float = 0.0
    bubble_s: float = 0.0
    other_mode_s: float | None = None
    regret_s: float = 0.0
    busy_s: float = 0.0


def num_scored(num_before: int, num_new: int, prompt_len: int) -> int:
    """How many tokens of a prompt a row with ``num_new`` tokens after ``num_before`` scores.

    A position's logits are about the token after it, so the prompt's first token has no score and
    its last position tells of the output.
    """
    return max(0, min(num_before + num_new, prompt_len - 1) - num_before)


def int32(raw: bytes) -> Int32Array:
    """View bytes of the wire as i4."""
    return np.frombuffer(raw, dtype=np.int32)


def float32(raw: bytes) -> Float32Array:
    """View bytes of the wire as f4."""
    return np.frombuffer(raw, dtype=np.float32)


def uint64(raw: bytes) -> UInt64Array:
    """View bytes of the wire as u8."""
    return np.frombuffer(raw, dtype=np.uint64)
