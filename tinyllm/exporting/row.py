"""`Row` and `Source`: what the export of an architecture says, and the file that it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .._core import Weight
from ..architectures.config import Config
from ..architectures.plan import ForwardPlan
from ..conversion.config import CheckpointConfig
from ..conversion.keys import rope_factors, yarn_magnitude
from ..errors import UnsupportedError

__all__ = ["ABSENT", "Row", "Source"]

Values = dict[str, Any]

#: A value that a config does not have. None is written as null, which replaces a class's default.
ABSENT: Any = object()


class Source:
    """A GGUF file, as the rows of the table ask for its contents.

    Parameters
    ----------
    metadata : mapping of str to object
        Keys and values.
    weights : mapping of str to Weight
    config : Config
    plan : ForwardPlan
    """

    def __init__(
        self,
        metadata: Mapping[str, Any],
        weights: Mapping[str, Weight],
        config: Config,
        plan: ForwardPlan,
    ) -> None:
        self.metadata, self.weights = metadata, weights
        self.config, self.plan = config, plan

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key without the prefix of the architecture."""
        value = self.metadata.get(f"{self.config.architecture}.{key}", default)
        return value.tolist() if isinstance(value, np.ndarray) else value

    def has(self, name: str) -> bool:
        """Whether any block has a tensor, or the file has it outside of the blocks."""
        return name in self.weights or any(
            f"blk.{i}.{name}" in self.weights for i in range(self.config.layers)
        )

    def one(self, name: str) -> int:
        """Return a number of the config that has to be the same in all layers."""
        value: int | tuple[int, ...] = getattr(self.config, name)
        if isinstance(value, tuple):
            raise UnsupportedError(
                f"{name} is {value!r:.80}, different in each layer; the checkpoint has one number"
            )
        return int(value)

    def number(self, layer: int, op: str, name: str) -> float | None:
        """Return a number of the first step of a layer that has this operation."""
        for step in self.plan:
            if step.layer == layer and step.op == op:
                return step.number(name)
        return None

    def windows(self) -> list[int]:
        """Return the size of the sliding window of each layer, 0 where it has none."""
        found = [self.number(i, "scores", "window") for i in range(self.config.layers)]
        return [int(value or 0) for value in found]

    def window(self) -> int | None:
        """Return the size of the sliding window, if there is one."""
        return max(self.windows(), default=0) or None

    def layer_types(self) -> list[str]:
        """Return the kind of each layer as transformers names it."""
        return ["sliding_attention" if size else "full_attention" for size in self.windows()]

    def dense_layers(self) -> list[int]:
        """Return the layers without experts."""
        layers = range(self.config.layers)
        return [i for i in layers if f"blk.{i}.ffn_gate_exps.weight" not in self.weights]

    def rope(self) -> Values:
        """Return the RoPE parameters as transformers 5 writes them."""
        config = self.config
        rope: Values = {"rope_theta": config.rope_base, "rope_type": "default"}
        if config.head_size and config.rope_dimension != config.head_size:
            rope["partial_rotary_factor"] = config.rope_dimension / config.head_size
        scaling = config.rope_scaling or {}
        kind = self.get("rope.scaling.type", "none")
        if "rope_factors_long.weight" in self.weights:
            rope |= self._longrope()
        elif "rope_freqs.weight" in self.weights:
            rope |= self._llama3(rope)
        elif kind == "linear" and scaling.get("factor", 1) != 1:
            rope |= {"rope_type": "linear", "factor": scaling["factor"]}
        elif kind == "yarn":
            rope |= self._yarn(scaling)
        return rope

    def _yarn(self, scaling: Mapping[str, Any]) -> Values:
        factor = scaling["factor"]
        original = self.get("rope.scaling.original_context_length", self.config.context_length)
        rope: Values = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
        }
        names = {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
        for theirs, ours in names.items():
            if self.get(f"rope.scaling.{ours}") is not None:
                rope[theirs] = self.get(f"rope.scaling.{ours}")
        if self.get("rope.scaling.yarn_attn_factor") is not None:
            rope["attention_factor"] = self.get("rope.scaling.yarn_attn_factor")
        elif self.get("rope.scaling.attn_factor") is not None:
            rope["attention_factor"] = self.get("rope.scaling.attn_factor") * yarn_magnitude(factor)
        return rope

    def _longrope(self) -> Values:
        factors = {
            f"{kind}_factor": [
                float(f"{value:.8g}")
                for value in self.weights[f"rope_factors_{kind}.weight"].numpy().reshape(-1)
            ]
            for kind in ("long", "short")
        }
        original = self.get("rope.scaling.original_context_length", self.config.context_length)
        rope: Values = {
            "rope_type": "longrope",
            **factors,
            "original_max_position_embeddings": original,
        }
        if self.get("rope.scaling.attn_factor") is not None:
            rope["attention_factor"] = self.get("rope.scaling.attn_factor")
        return rope

    def _llama3(self, rope: Values) -> Values:
        """Return the numbers of Llama 3.1's scaling that give the factors of the file."""
        factors = self.weights["rope_freqs.weight"].numpy().reshape(-1)
        factor = float(factors.max())
        for original in (8192, *(2**n for n in range(4, 21))):
            found: Values = {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": original,
            }
            values = {
                "hidden_size": self.config.width,
                "num_attention_heads": self.one("heads"),
                "head_dim": self.config.head_size,
                "rope_parameters": {**rope, **found},
                "max_position_embeddings": self.config.context_length,
            }
            made = rope_factors(CheckpointConfig(values))["rope_freqs.weight"]
            if made.shape == factors.shape and np.allclose(made, factors, rtol=1e-5):
                return found
        raise UnsupportedError(
            "rope_freqs.weight has factors that are not those of Llama 3.1's scaling"
        )

    def common(self) -> Values:
        """Return the values that most configs have."""
        config = self.config
        rope = self.rope()
        values: Values = {
            "vocab_size": config.vocab_size,
            "hidden_size": config.width,
            "num_hidden_layers": config.layers,
            "num_attention_heads": self.one("heads"),
            "num_key_value_heads": self.one("kv_heads"),
            "head_dim": config.head_size,
            "max_position_embeddings": config.context_length,
            "tie_word_embeddings": config.tied,
            "rope_parameters": rope,
            "rope_theta": config.rope_base,  # read by transformers 4
        }
        if not self.get("expert_count") or config.ffn_width:
            values["intermediate_size"] = self.one("ffn_width")
        if rope["rope_type"] != "default":
            values["rope_scaling"] = rope
        if "partial_rotary_factor" in rope:
            values["partial_rotary_factor"] = rope["partial_rotary_factor"]
        # null where there is none, because classes have ids of their own as defaults
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
            index = self.metadata.get(f"tokenizer.ggml.{key}_token_id")
            values[f"{name}_token_id"] = None if index is None else int(index)
        return values


@dataclasses.dataclass(frozen=True)
class Row:
    """How the files of an architecture become checkpoints of a Hugging Face class.

    Attributes
    ----------
    cls : str
        The class, for example ``"LlamaForCausalLM"``.
    model_type : str
        transformers' name of the config.
    values : callable
        From the `Source` to the values of ``config.json`` beyond the common ones. They replace
        those, and `ABSENT` removes one.
    when : callable or None
        Whether a file belongs to this class, if the architecture has several.
    prefix : str
        What stands before the names of tensors.
    blocks : str
        The name of the list of blocks.
    without : tuple of str
        Beginnings of names in the row of the conversion that this class does not have.
    """

    cls: str
    model_type: str
    values: Callable[[Source], Values]
    when: Callable[[Source], bool] | None = None
    prefix: str = "model."
    blocks: str = "layers"
    without: tuple[str, ...] = ()
