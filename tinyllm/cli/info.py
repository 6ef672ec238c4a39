"""Show the contents of a file: config, metadata, tensors."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..architectures.table import read_model
from ..base.units import size
from ..display.table import Table, terminal_width
from ..errors import Error
from ..files.adapter import Adapter, is_adapter
from ..files.model_file import ModelFile, check_holds_model, open_file
from ..training.history import read_history
from .output import show, show_json

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm info model.gguf"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "file", help="GGUF file, llama2.c checkpoint, hf:owner/repo, ollama:name, or demo"
    )
    parser.add_argument("--short", action="store_true", help="leave out the list of tensors")
    parser.add_argument("--json", action="store_true", help="everything but the weights, as JSON")
    parser.add_argument(
        "--width",
        type=int,
        help="the most characters of a value (default: what fits the terminal, else 70)",
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    model = open_file(args.file)
    metadata, weights = model.metadata, model.weights
    total = size(sum(weight.nbytes for weight in weights.values()))
    parameters = sum(int(np.prod(w.shape, dtype=np.int64)) for w in weights.values())
    if args.json:
        show_json(_as_json(model, parameters))
        return
    show(f"{args.file}: {len(weights)} tensors, {parameters:,} values, {total}")
    if is_adapter(metadata):
        _show_adapter(args.file)
    else:
        _show_config(model)
    show()
    kind: Callable[[str], str] = getattr(metadata, "type", lambda key: "")
    most = args.width
    if most is None:
        widest = max((len(key) + len(kind(key)) for key in metadata), default=0)
        most = max(20, (terminal_width() or widest + 74) - widest - 4)
    rows = [(key, kind(key), _preview(metadata[key], most)) for key in metadata]
    show(Table(("metadata", "type", "value"), rows))
    show()
    types = {weight.type for weight in weights.values()}
    totals = [
        (
            name,
            sum(w.type == name for w in weights.values()),
            size(sum(w.nbytes for w in weights.values() if w.type == name)),
        )
        for name in sorted(types)
    ]
    show(Table(("type", "tensors", "size"), totals))
    if not args.short:
        show()
        tensors = [(w.name, w.type, str(w.shape), size(w.nbytes)) for w in weights.values()]
        show(Table(("tensor", "type", "shape", "size"), tensors))


def _show_adapter(path: str) -> None:
    try:
        adapter = Adapter(path)
    except Error as error:
        show(f"tinyllm cannot use this adapter: {error}")
        return
    show(f"a LoRA adapter for a model of the architecture {adapter.architecture}")
    show()
    show(adapter.table())


def _show_config(model: ModelFile) -> None:
    try:
        check_holds_model(model)
        config, _ = read_model(model.metadata, model.weights)
    except Error as error:
        show(f"tinyllm cannot run this model: {error}")
        return
    show()
    names = [name for name in vars(config) if not name.startswith("_")]
    show(Table(("config", "value"), [(n, getattr(config, n)) for n in names]))


def _as_json(model: ModelFile, parameters: int) -> dict[str, Any]:
    """Return the contents of a file as values that JSON has."""
    try:
        check_holds_model(model)
        config, _ = read_model(model.metadata, model.weights)
        known = {n: _plain(getattr(config, n)) for n in vars(config) if not n.startswith("_")}
    except Error:
        known = None
    return {
        "parameters": parameters,
        "config": known,
        "history": [event._asdict() for event in read_history(model.metadata)],
        "metadata": {key: _plain(model.metadata[key]) for key in model.metadata},
        "tensors": [
            {"name": w.name, "type": w.type, "shape": list(w.shape), "bytes": w.nbytes}
            for w in model.weights.values()
        ],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _preview(value: Any, limit: int) -> str:
    """Return a metadata value on one line of limited length."""
    if isinstance(value, (list, np.ndarray)):
        shown = ", ".join(_preview(v, 20) for v in value[:6])
        return f"[{shown}{', ...' if len(value) > 6 else ''}] ({len(value):,})"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
