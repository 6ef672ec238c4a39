"""Encoders: models of embeddings and rankings."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..errors import UnsupportedError, wrong
from .config import CheckpointConfig
from .dense import GEMMA3, QWEN2
from .family import Family, Keys, Target, To, fixed
from .layouts import without_first

__all__ = ["ENCODERS", "RANK"]

#: llama.cpp's number of the pooling that ranks.
RANK = 4

_CLASSIFIER: dict[str, Target] = {
    "pooler.dense": "cls",
    "classifier": "cls.output",
    "classifier.dense": "cls",
    "classifier.out_proj": "cls.output",
}

_BERT_NAMES: dict[str, Target] = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
    **_CLASSIFIER,
}


def _is_roberta(config: CheckpointConfig) -> bool:
    return any("Roberta" in name or "Camembert" in name for name in config.classes)


def _first_position(config: CheckpointConfig) -> int:
    """Return the first row of the position embeddings that is used: Roberta counts from there."""
    return config.integer("pad_token_id", default=1) + 1 if _is_roberta(config) else 0


def _ranks(config: CheckpointConfig) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in config.classes)


def _bert_keys(config: CheckpointConfig) -> Keys:
    keys: Keys = {
        "attention.causal": False,
        "tokenizer.ggml.token_type_count": config.integer("type_vocab_size", default=1),
    }
    if config.get("max_position_embeddings") is not None:
        length = config.integer("max_position_embeddings") - _first_position(config)
        keys["context_length"] = length
    if _ranks(config):
        keys["pooling_type"] = RANK
        keys["classifier.output_labels"] = _labels(config)
    return keys


def _labels(config: CheckpointConfig) -> list[str]:
    labels: Any = config.get("id2label", default={"0": "LABEL_0", "1": "LABEL_1"})
    if not isinstance(labels, dict) or not all(
        str(key).isdecimal() and isinstance(label, str) for key, label in labels.items()
    ):
        raise wrong("id2label of config.json", labels, "an object of labels by number")
    return [labels[key] for key in sorted(labels, key=int)]


def _without_pooler(config: CheckpointConfig) -> tuple[str, ...]:
    """Return the layer after the pooling, which only a classifier uses."""
    return () if _ranks(config) else ("cls.weight", "cls.bias")


def _nomic_keys(config: CheckpointConfig) -> Keys:
    keys = _bert_keys(config)
    positions = config.get("n_positions")
    if config.get("activation_function") is not None and positions is not None:
        # the published configs state more positions than the models were trained for
        trained = config.integer("max_trained_positions", default=2048)
        keys["context_length"] = min(config.integer("n_positions"), trained)
    return keys


def _modern_keys(config: CheckpointConfig) -> Keys:
    kinds = config.layer_types
    every = config.integer("global_attn_every_n_layers", default=0)
    if kinds and not every:
        every = next((i for i in range(1, len(kinds)) if kinds[i] == "full_attention"), len(kinds))
    usual = [
        "sliding_attention" if i % max(every, 1) else "full_attention" for i in range(len(kinds))
    ]
    if kinds != usual:
        raise UnsupportedError(
            "layer_types of config.json is irregular; GGUF's modern-bert has the first of each "
            "period of layers global"
        )
    return {
        "attention.causal": False,
        "attention.sliding_window": config.integer("local_attention"),
        "attention.sliding_window_pattern": every,
        "attention.layer_norm_epsilon": config.number("norm_eps", "layer_norm_eps", default=1e-5),
        "attention.layer_norm_rms_epsilon": None,
        "rope.scaling.type": "none",
        "hidden_activation": str(config.get("hidden_activation", default="gelu")),
    }


BERT = Family(
    classes=(
        "BertModel",
        "BertForMaskedLM",
        "BertForSequenceClassification",
        "CamembertModel",
        "RobertaModel",
        "RobertaForSequenceClassification",
        "XLMRobertaModel",
        "XLMRobertaForSequenceClassification",
    ),
    names={
        **_BERT_NAMES,
        "embeddings.position_embeddings": To("position_embd", without_first(_first_position)),
    },
    keys=(_bert_keys,),
    rope=False,
    skipped=("embeddings.position_ids", "cls."),
    dropped=_without_pooler,
)

#: The rows, by ``general.architecture``.
ENCODERS: dict[str, Family] = {
    "bert": BERT,
    "nomic-bert": dataclasses.replace(
        BERT,
        classes=("NomicBertModel",),
        names={
            **_BERT_NAMES,
            "emb_ln": "token_embd_norm",
            "attn.Wqkv": "attn_qkv",
            "attn.out_proj": "attn_output",
            "norm1": "attn_output_norm",
            "mlp.fc11": "ffn_up",
            "mlp.fc12": "ffn_gate",
            "mlp.fc2": "ffn_down",
            "norm2": "layer_output_norm",
        },
        keys=(_nomic_keys,),
        rope=True,
        when=lambda config: not config.get("moe_every_n_layers"),
    ),
    "modern-bert": Family(
        classes=("ModernBertModel", "ModernBertForMaskedLM"),
        names={
            "embeddings.tok_embeddings": "token_embd",
            "embeddings.norm": "token_embd_norm",
            "final_norm": "output_norm",
            "attn_norm": "attn_norm",
            "attn.Wqkv": "attn_qkv",
            "attn.Wo": "attn_output",
            "mlp_norm": "ffn_norm",
            "mlp.Wi": "ffn_up",
            "mlp.Wo": "ffn_down",
        },
        keys=(_modern_keys,),
        skipped=("head.", "decoder."),
    ),
    "eurobert": dataclasses.replace(
        QWEN2,
        classes=("EuroBertModel",),
        keys=(fixed(attention__causal=False),),
    ),
    "gemma-embedding": dataclasses.replace(
        GEMMA3,
        classes=("Gemma3TextModel",),
        keys=(
            *GEMMA3.keys,
            # the whole width of the symmetric window, as the config states it
            lambda config: {"attention.sliding_window": config.integer("sliding_window")},
            fixed(final_logit_softcapping=None),
        ),
        dense=True,
    ),
}
