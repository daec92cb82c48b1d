"""Which keys of a ``config.json`` are read, which change no logits, and which are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.spec.errors import CheckpointError
from engine.spec.families.family import Family
from engine.spec.quantisation import KEY, READABLE, method_of

# Read by `engine.spec.model`, `engine.spec.rope` and the families' refusals.
READ_KEYS = frozenset(
    {
        "model_type", "num_hidden_layers", "hidden_size", "intermediate_size",
        "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
        "max_position_embeddings", "rms_norm_eps", "hidden_act", "tie_word_embeddings",
        "attention_bias", "mlp_bias", "dtype", "torch_dtype", "eos_token_id", "bos_token_id",
        "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor",
        "original_max_position_embeddings", "use_sliding_window", "sliding_window",
        "max_window_layers", "layer_types",
    }
)  # fmt: skip
# Of training, of other tasks, of how libraries run a model or sample from it.
HARMLESS_KEYS = frozenset(
    {
        "architectures", "transformers_version", "initializer_range", "use_cache", "pad_token_id",
        "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "pretraining_tp",
        "torchscript", "output_attentions", "output_hidden_states", "return_dict",
        "return_dict_in_generate", "output_scores", "id2label", "label2id", "num_labels",
        "problem_type", "chunk_size_feed_forward", "pruned_heads", "task_specific_params",
        "tokenizer_class", "prefix", "sep_token_id", "cls_token_id", "unk_token_id",
        "decoder_start_token_id", "finetuning_task", "is_decoder", "auto_map", "name_or_path",
        "gradient_checkpointing", "use_flash_attn", "use_flash_attention_2", "attn_implementation",
        "neftune_noise_alpha", "unsloth_fixed", "unsloth_version", "is_llama_config",
        "model_max_length", "tokenizer_model_max_length", "tokenizer_padding_side",
        "transformers.js_config", "bad_words_ids", "begin_suppress_tokens", "suppress_tokens",
        "forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty",
        "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty",
        "length_penalty", "diversity_penalty", "encoder_no_repeat_ngram_size",
        "no_repeat_ngram_size", "do_sample", "num_beams", "num_beam_groups",
        "num_return_sequences", "early_stopping", "max_length", "min_length", "max_new_tokens",
        "remove_invalid_values", "cross_attention_hidden_size", "gguf_file",
    }
)  # fmt: skip
# Where tools write how they quantised the weights, besides the key that is read.
QUANTISED_KEYS = ("quantization", "compression_config")


def check_keys(
    raw: Mapping[str, Any], family: Family, where: str, *, may_be_quantised: bool = False
) -> None:
    """Refuse weights quantised under keys that are not read, and every key with a value whose
    meaning is not known.

    Null and false ask for nothing, and names that begin with an underscore are notes of tools.

    Raises:
        CheckpointError: with the method, or the key.
    """
    for key in QUANTISED_KEYS:
        if raw.get(key) and not may_be_quantised:
            raise CheckpointError(
                f"{where}: the weights are quantised ({method_of(raw[key])}); only weights in "
                f"{READABLE}"
            )
    known = READ_KEYS | HARMLESS_KEYS | family.own_keys | frozenset((KEY, *QUANTISED_KEYS))
    for key, value in raw.items():
        is_asking = value is not None and value is not False and value not in ({}, [], "")
        if is_asking and key not in known and not key.startswith("_"):
            raise CheckpointError(
                f"{where}: key {key!r} is not known for {family.model_type}; leaving it out could "
                "change what the model answers"
            )
