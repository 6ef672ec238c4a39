"""`Arch`: the properties of an architecture that a model file does not state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

__all__ = ["Arch", "Window"]


@dataclasses.dataclass(frozen=True)
class Window:
    """Sliding windows: which blocks have one, and what else differs in these blocks.

    Keys of the file win over these defaults.

    Attributes
    ----------
    every : int
        Every `every`-th block is global; the others are local, which means that they have a
        window. 1: all blocks are global. 0: all are local if the file states a window.
    first : bool
        Whether the global block is the first of these, instead of the last.
    chunked : bool
        Whether a local block sees the positions from the last multiple of the size on.
    size : int
        Positions in a window. 0: as the file states; without a key there are no windows.
    base : float
        RoPE's base in local blocks. 0: as in global blocks.
    scaled : bool
        Whether RoPE's scaling applies to local blocks.
    rotated : float
        What share of ``rope.dimension_count`` RoPE turns in global blocks.
    """

    every: int = 0
    first: bool = False
    chunked: bool = False
    size: int = 0
    base: float = 0.0
    scaled: bool = True
    rotated: float = 1.0


@dataclasses.dataclass(frozen=True)
class Arch:
    """The properties of an architecture that a model file does not state.

    Everything else is read from the keys and tensors of the file: sizes, RoPE's base and scaling,
    and whether optional biases, norms and an output matrix exist.

    Attributes
    ----------
    block : callable
        Builds a block: how its branches join the residual stream. See `blocks`.
    mixer : callable
        Builds the token mixer, such as attention. See `mixers`.
    ffn : callable
        Builds the feed-forward network. See `feed_forward`.
    embedding, head : callable or None
        Build what comes before the blocks and after them. None: the embedding of the tokens, and
        the final norm with the logits.
    rope : str
        Which two values of a head are rotated together: ``"pairs"`` (2j and 2j + 1), or
        ``"halves"`` (j and j + n/2). ``"none"``: there is no RoPE.
    rotated : callable
        Takes a `Builder`. Whether its current block has RoPE.
    biases : tuple of str
        Linear steps that must have a bias. Other linear steps use a bias if the file has one.
    norm : str
        ``"rms"`` or ``"layer"`` (LayerNorm).
    norm_weights : bool
        Whether norms have weights.
    pre_norms : bool
        Whether each branch begins with a norm.
    post_norms : bool
        Whether each branch ends with a norm, ``post_attention_norm`` and ``post_ffw_norm``.
    ffn_norm : str
        The name of the norm before the feed-forward network.
    output_norm : str
        The name of the norm after the blocks.
    qk_norm : str
        What a norm of queries and keys covers, if the file has one: ``"head"``, or ``"row"`` (all
        heads). ``"heads"``: a head, with a LayerNorm whose weights differ between heads.
        ``"layer"``: all heads, with a LayerNorm. ``"plain"``: a head, without weights, in every
        block that has RoPE.
    late_qk_norm : bool
        Whether these norms come after RoPE.
    act : str
        The activation, one of `plan.FUNCTIONS`.
    gate : str
        The activation of a gate of attention's result: ``"sigmoid"`` or ``"softplus"``.
    window : Window
        Sliding windows.
    scale : callable or None
        Takes a `Builder`. The factor of attention scores, if the file states none; None for
        1 / sqrt(head size).
    embed_scale : str
        ``"sqrt_width"``: the embedding is multiplied by the square root of the width.
    scales : callable or None
        Takes a `Config`. Factors of the embedding, of the branches and of the logits, if the file
        states none.
    logit_scale : str
        What the key ``logit_scale`` does: ``"times"`` or ``"over"``.
    routing : str
        Where the weights of the chosen experts come from, if the file does not state it:
        ``"softmax"``, ``"sigmoid"``, ``"softmax_of_chosen"`` or ``"sparse_mixer"``.
    normalize : bool
        Whether these weights are divided by their sum, if the file does not state it.
    gated_experts : bool
        Whether experts have a gate.
    caps : tuple of float
        Soft caps of attention scores and of logits, if the file states none. 0 for no cap.
    rounded : bool
        Whether YaRN rounds the range of pairs that it interpolates.
    alibi : callable or None
        Takes a `Builder`. The largest bias of ALiBi (Press et al. 2021, arXiv:2108.12409), if the
        file states none; 0 for none. None: the architecture never has ALiBi.
    temperature : tuple of float
        Slope, length and offset of the factor of queries that grows with the position, in blocks
        without RoPE, if the file states none. All 0: all blocks have what the file states.
    latent : bool
        Whether attention is latent: then YaRN's multiplier in the file changes the factor of the
        scores instead of the rotation.
    buckets : bool
        Whether scores have biases, one for each head and bucket of distances.
    blocks : str
        What the names of the tensors of blocks begin with.
    layers : str
        The key with the number of blocks.
    decoder : Arch or None
        The row of the decoder that reads what this encoder made of a source.
    causal : bool
        Whether a token sees only itself and earlier tokens.
    zeros : bool
        Whether 0 kv heads or a feed-forward width of 0 mean that a block has none.
    tiled : bool
        Whether value head h of a delta net uses key head h mod their number. If not, consecutive
        value heads share a key head.
    required, optional : tuple of str
        Norms, embeddings and sinks that the file must have, and that it may have, besides those
        that the other fields demand.
    experimental : bool
        Whether no other implementation has confirmed the results. Loading warns of it.
    """

    block: Callable[..., Any]
    mixer: Callable[..., Any]
    ffn: Callable[..., Any]
    rope: str
    embedding: Callable[..., str] | None = None
    head: Callable[..., None] | None = None
    rotated: Callable[..., bool] = lambda b: True
    biases: tuple[str, ...] = ()
    norm: str = "rms"
    norm_weights: bool = True
    pre_norms: bool = True
    post_norms: bool = False
    ffn_norm: str = "ffn_norm"
    output_norm: str = "output_norm"
    qk_norm: str = "head"
    late_qk_norm: bool = False
    act: str = "silu"
    gate: str = "sigmoid"
    window: Window = Window()
    scale: Callable[..., float] | None = None
    embed_scale: str = ""
    scales: Callable[..., tuple[float, float, float]] | None = None
    logit_scale: str = "times"
    routing: str = "softmax"
    normalize: bool = True
    gated_experts: bool = True
    caps: tuple[float, float] = (0.0, 0.0)
    rounded: bool = True
    alibi: Callable[..., float] | None = None
    temperature: tuple[float, float, float] = (0.0, 0.0, 0.0)
    latent: bool = False
    buckets: bool = False
    blocks: str = "blk"
    layers: str = "block_count"
    decoder: Arch | None = None
    causal: bool = True
    zeros: bool = False
    tiled: bool = False
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    experimental: bool = False

    @property
    def epsilon_key(self) -> str:
        """The key of the epsilon of norms."""
        return f"attention.layer_norm_{'rms_' if self.norm == 'rms' else ''}epsilon"
