"""`convert`: a checkpoint of another format becomes a GGUF file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ..base.numeric import Float32
from ..base.progress import Progress
from ..files.gguf_write import TensorSource, write_gguf
from ..files.llama2c import read_llama2c, read_tokenizer_bin
from ..files.paths import first_bytes
from .encode import encode
from .huggingface import Checkpoint, Converted, open_checkpoint
from .peft import CONFIG, convert_adapter

__all__ = ["DTYPES", "convert", "tensor_type"]

#: The types of matrices, and llama.cpp's number of a file of each type.
DTYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
_FILE_TYPES = {**DTYPES, "MXFP4": 38}

#: Matrices that are always float32, as in llama.cpp.
_SMALL = (
    "ffn_gate_inp",
    "ffn_gate_inp_shexp",
    "position_embd",
    "token_types",
    "ssm_conv1d",
    "shortconv.conv",
)


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: str = "auto",
    *,
    vocab: bool = True,
    base: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> None:
    """Write a Hugging Face checkpoint, a PEFT adapter or a llama2.c checkpoint as a GGUF file.

    Names, layouts and keys are those of llama.cpp's converter. Tensors are written one after the
    other, so memory holds one of them at a time. `out` appears when it is complete.

    Parameters
    ----------
    source : str or os.PathLike
        A folder with ``config.json`` and ``model.safetensors`` (whole or in shards), a file in such
        a folder, or a llama2.c checkpoint. The folder of a LoRA adapter of PEFT, with
        ``adapter_config.json``, becomes an adapter file: see `Adapter`.
    out : str or os.PathLike
        The GGUF file. An existing file is replaced.
    dtype : str
        The type of matrices: ``"F32"``, ``"F16"``, ``"BF16"`` or ``"Q8_0"``. ``"auto"``: the type
        in which the checkpoint has each of them; FP8 becomes BF16. Vectors, norms and routers are
        F32. A matrix whose
        rows are not made of blocks of 32 values becomes F16 instead of Q8_0.
    vocab : bool
        Whether to convert the tokenizer and the chat template. A file without a vocabulary takes
        token ids. So does that of a folder without files of a tokenizer.
    base : str or os.PathLike, optional
        For an adapter: the folder of the model's checkpoint, of which ``config.json`` is read.
        Default: the folder that the adapter's config names.
    progress : bool
        Whether to show a progress bar if it takes long.

    Raises
    ------
    tinyllm.UnsupportedError
        If the architecture is unknown, if the checkpoint has unknown tensors, which the message
        lists, if its tensors are in ``pytorch_model.bin``, or if GGUF has no name for its
        tokenizer. If an adapter has parts that GGUF has no place for, such as DoRA.
    tinyllm.FormatError
        If a file is damaged or incomplete.
    ValueError
        If `dtype` is unknown, or a value does not fit float16.
    OSError
        If a file cannot be read or written.

    Examples
    --------
    >>> import json, pathlib
    >>> import numpy as np
    >>> import tinyllm as tl
    >>> from tinyllm.files.arrays import write_arrays
    >>> config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1, "hidden_size": 8}
    >>> config |= {"num_attention_heads": 2, "intermediate_size": 4, "rms_norm_eps": 1e-5}
    >>> config |= {"max_position_embeddings": 16, "vocab_size": 5}
    >>> pathlib.Path("folder").mkdir()
    >>> _ = pathlib.Path("folder/config.json").write_text(json.dumps(config))
    >>> layer = "model.layers.0."
    >>> shapes = {"model.embed_tokens": (5, 8), "model.norm": 8, "lm_head": (5, 8)}
    >>> shapes |= {f"{layer}self_attn.{name}_proj": (8, 8) for name in "qkvo"}
    >>> shapes |= {f"{layer}mlp.{name}_proj": (4, 8) for name in ("gate", "up")}
    >>> shapes |= {f"{layer}mlp.down_proj": (8, 4)}
    >>> shapes |= {f"{layer}{name}_layernorm": 8 for name in ("input", "post_attention")}
    >>> tensors = {f"{name}.weight": np.ones(n, np.float32) for name, n in shapes.items()}
    >>> write_arrays("folder/model.safetensors", tensors, {})
    >>> tl.convert("folder", "model.gguf")
    >>> tl.load("model.gguf").config.layers
    1
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected auto, {', '.join(DTYPES)}")
    folder = _adapter_folder(source)
    if folder is not None:
        convert_adapter(folder, out, dtype, base)
        return
    if base is not None:
        raise ValueError(
            f"base is {base!r}, and {os.fsdecode(source)} is no adapter; expected a folder with "
            f"{CONFIG}"
        )
    opened = _open(source, vocab)
    kinds = {
        name: tensor_type(name, tensor.shape, tensor.stored, dtype)
        for name, tensor in opened.tensors.items()
    }
    main = _main_type(opened.tensors, kinds) if dtype == "auto" else dtype
    metadata = {
        **opened.metadata,
        "general.file_type": _FILE_TYPES[main],
        "general.quantization_version": 2,
    }
    total = sum(float(np.prod(tensor.shape)) for tensor in opened.tensors.values())
    with Progress(total, f"converting {os.path.basename(os.fsdecode(out))}", progress) as bar:

        def reader(name: str, tensor: Converted) -> Callable[[], npt.NDArray[np.uint8]]:
            def read() -> npt.NDArray[np.uint8]:
                if kinds[name] == "MXFP4" and tensor.packed is not None:
                    data = tensor.packed()
                else:
                    data = encode(name, tensor.read(), kinds[name])
                tensor.release()
                bar.add(float(np.prod(tensor.shape)))
                return data

            return read

        tensors = {
            name: TensorSource(tensor.shape, kinds[name], reader(name, tensor))
            for name, tensor in opened.tensors.items()
        }
        write_gguf(out, metadata, tensors)


def tensor_type(name: str, shape: tuple[int, ...], stored: str, dtype: str) -> str:
    """Return the type in which a tensor is written.

    Parameters
    ----------
    name : str
        The GGUF name.
    shape : tuple of int
    stored : str
        The dtype in the checkpoint.
    dtype : str
        The chosen type, or ``"auto"``.

    Returns
    -------
    str
    """
    stem = name.removesuffix(".weight")
    parts = stem.split(".")
    small = parts[-1] in _SMALL or ".".join(parts[-2:]) in _SMALL
    if len(shape) < 2 or stem == name or stem.endswith("_norm") or small:
        return "F32"
    if dtype == "auto":
        same = stored in ("F16", "BF16", "MXFP4")
        return stored if same else "BF16" if stored.startswith("F8_") else "F32"
    return "F16" if dtype == "Q8_0" and shape[-1] % 32 else dtype


def _adapter_folder(source: str | os.PathLike[str]) -> str | None:
    """Return the folder of a PEFT adapter, or None if the source is something else."""
    path = os.fsdecode(source)
    if os.path.basename(path) in (CONFIG, "adapter_model.safetensors"):
        path = os.path.dirname(path) or "."
    return path if os.path.isfile(os.path.join(path, CONFIG)) else None


def _main_type(tensors: dict[str, Converted], kinds: dict[str, str]) -> str:
    """Return the type of most values."""
    sizes: Counter[str] = Counter()
    for name, tensor in tensors.items():
        sizes[kinds[name]] += int(np.prod(tensor.shape))
    return max(sizes, key=lambda kind: sizes[kind], default="F32")


def _open(source: str | os.PathLike[str], vocab: bool) -> Checkpoint:
    path = os.fsdecode(source)
    if os.path.isdir(path):
        return open_checkpoint(path, vocab)
    if path.endswith((".safetensors", ".json")):
        return open_checkpoint(os.path.dirname(path) or ".", vocab)
    magic = first_bytes(path)
    if magic == b"GGUF":
        raise ValueError(f"{path} is a GGUF file already; expected a checkpoint to convert")
    metadata, weights = read_llama2c(path)
    beside = os.path.join(os.path.dirname(path), "tokenizer.bin")
    if vocab and os.path.isfile(beside):
        metadata.update(read_tokenizer_bin(beside, metadata["llama.vocab_size"]))

    def values(name: str) -> Callable[[], Float32]:
        return lambda: np.asarray(weights[name].numpy(), np.float32)

    tensors = {name: Converted(w.shape, "F32", values(name)) for name, w in weights.items()}
    return Checkpoint(metadata, tensors)
