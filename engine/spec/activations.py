"""Working memory of a step: what a rank holds beside weights and KV at its fullest moment."""

from __future__ import annotations

from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan, padded_vocab_size
from engine.spec.settings import Caps

# A threshold is a hot knob, so a Shift plan keeps room for the largest one that a search tries.
LARGEST_SHIFT_TOKENS = 2048
# Logits in two bytes and in four, and what a sampler with top-k and top-p sorts and masks. vLLM
# 0.11 logs 38.3 to 38.6 on H100 for models from 0.6 to 70 billion parameters, whatever the TP
# degree (peak less hidden states, over 1,024 rows; llm-d/llm-d-benchmark, config_explorer).
SAMPLER_BYTES_PER_LOGIT = 38.4


def activation_bytes(
    model: ModelConfig,
    plan: ParallelPlan,
    caps: Caps,
    *,
    num_bytes: int,
    samples_in_parallel: bool = False,
) -> int:
    """Peak bytes of one rank's activations, of ``num_bytes`` each, in a step as full as ``caps``
    allow.

    This is what vLLM's profile run measures before it sizes its KV cache: a forward pass of
    ``max_num_batched_tokens`` tokens, then ``max_num_seqs`` rows sampled while its last hidden
    states are still held. The larger of the two counts, as buffers are used again. A rank samples
    whole rows of the padded vocabulary; with ``samples_in_parallel`` its share of them.

    Products with fp8 weights take one-byte inputs and give two-byte results. The one-byte copies
    live only while larger buffers are gone, so they are not counted. A mode pinned to shift may
    take larger steps than are counted here.
    """
    forward = max(
        _forward_elements(model, plan, caps.max_num_batched_tokens),
        _shift_elements(model, plan, caps),
    )
    held = _rows(plan, caps.max_num_batched_tokens) * model.hidden_size
    sampled = min(caps.max_num_seqs, caps.max_num_batched_tokens)
    if samples_in_parallel:
        sampled = -(-sampled // plan.stage_size)
    logits = sampled * padded_vocab_size(model.vocab_size, plan.stage_size)
    return max(forward * num_bytes, held * num_bytes + int(logits * SAMPLER_BYTES_PER_LOGIT))


def _shift_elements(model: ModelConfig, plan: ParallelPlan, caps: Caps) -> int:
    """The shift mode's share: full TP, no token is cut away, but few tokens."""
    if not plan.shift:
        return 0
    tokens = min(caps.max_num_batched_tokens, LARGEST_SHIFT_TOKENS)
    return _forward_elements(model, ParallelPlan(pp=plan.pp, tp=plan.stage_size), tokens)


def _forward_elements(model: ModelConfig, plan: ParallelPlan, tokens: int) -> int:
    """Elements alive at the fullest point of a layer, with d hidden, f FFN and q, k query and KV
    elements of a rank's heads, r = tokens/SP rows, n tokens:

        gate and up, and their product      r * (d + 3f/TP)
        down, then its all-reduce           r * max(2d + f/TP, 3d)
        attention                           n * (2q + 2k) + r * d
        SP, both ends of the all-to-all     n * 2(q + 2k) + r * d

    The first is what vLLM's profiled peak grows by: 110 kB a token between 2,048 and 8,192 tokens
    in a hybrid of 64 layers that we take to have d = 5120 and f = 17408, where the formula gives
    115 kB (vllm-project/vllm#52872). d once is the residual stream; the all-reduce writes beside
    its input, as vLLM's do. A stage of a pipeline holds hidden states and residual of its next
    batch, too.
    """
    d, ffn = model.hidden_size, model.ffn_size // plan.tp
    rows = _rows(plan, tokens)
    padded = rows * plan.sp
    q = model.q_size // plan.stage_size
    kv = 2 * model.kv_heads_per_rank(plan) * model.head_dim
    attention = 2 * (q + kv) if plan.sp > 1 else 2 * q + kv
    mlp = max(3 * ffn, d + ffn, 2 * d if plan.tp > 1 else 0)
    layer = rows * d + max(rows * mlp, padded * attention)
    return layer + (2 * rows * d if plan.pp > 1 else 0)


def _rows(plan: ParallelPlan, tokens: int) -> int:
    """Tokens of a rank's slice; Ulysses pads the step to a multiple of SP."""
    return -(-tokens // plan.sp)
