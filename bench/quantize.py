"""Quantization beside llama.cpp: errors of each type, divergence of whole models, and time.

    python bench/quantize.py types
    python bench/quantize.py models TEXT MODEL...
    python bench/quantize.py target TEXT MODEL...
    python bench/quantize.py perplexity TEXT MODEL
    python bench/quantize.py time MODEL
    python bench/quantize.py noise MODEL OUT

Needs llama-cpp-python. TEXT is measured for the importance matrix in its first half, and compared
in its second half. Each MODEL should have F32, F16 or BF16 weights. `noise` makes such a file of a
quantized one: it adds noise of up to half a step to the weights, so that they are no longer on the
grid of a type.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
import time
from pathlib import Path

import llama_cpp
import numpy as np

import tinyllm as tl
from tinyllm import _core
from tinyllm.quantization.mixes import COARSE, MIXES

TYPES = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4".split()
TYPES += "NVFP4 TQ1_0 TQ2_0 Q1_0 Q2_0 IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S".split()
COMPARED = "Q8_0 Q6_K Q5_K_M Q4_K_M Q4_K_S Q4_0 IQ4_XS Q3_K_M Q2_K".split()


@llama_cpp.llama_log_callback
def silent(level, text, data):
    """Drop llama.cpp's messages."""


class Entry(ctypes.Structure):
    """llama_model_imatrix_data."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.POINTER(ctypes.c_float)),
        ("size", ctypes.c_size_t),
    )


def their_quantize(path, out, mix, imatrix=None, threads=2):
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = MIXES[mix].file_type, threads
    params.allow_requantize = True
    values = {}
    if imatrix is not None:
        for name in imatrix.sums:
            counts = len(imatrix.counts[name])
            means = imatrix.sums[name].reshape(counts, -1) / imatrix.counts[name][:, np.newaxis]
            values[name.encode()] = np.ascontiguousarray(means, np.float32)
    entries = (Entry * (len(values) + 1))()
    for entry, (name, value) in zip(entries, values.items(), strict=False):
        entry.name, entry.size = name, value.size
        entry.data = value.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if values:
        params.imatrix = ctypes.cast(entries, type(params.imatrix))
    status = llama_cpp.llama_model_quantize(
        str(path).encode(), str(out).encode(), ctypes.byref(params)
    )
    if status != 0:
        raise RuntimeError(f"llama_model_quantize returned {status} for {mix}")


def ggml():
    """Return ggml_quantize_chunk as a function of a type, values and weights."""
    path = next((Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base.*"))
    library = ctypes.CDLL(str(path))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
        *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
    ]

    def quantize(kind, x, weight=None):
        number, items, size, _ = _core.tensor_types()[kind]
        out = np.empty(x.size // items * size, np.uint8)
        given = None if weight is None else weight.ctypes.data
        library.ggml_quantize_chunk(number, x.ctypes.data, out.ctypes.data, 0, *x.shape, given)
        return out

    return quantize


def samples():
    """Yield (name, values, importance)."""
    random = np.random.default_rng(0)
    gauss = random.standard_normal((256, 2048)).astype(np.float32)
    yield "normal", gauss, random.lognormal(0, 1, 2048).astype(np.float32)
    heavy = gauss * random.lognormal(0, 1, (256, 2048)).astype(np.float32)
    yield "heavy tails", heavy, random.lognormal(0, 1, 2048).astype(np.float32)
    model = tl.load()
    ids = model.tokenizer.encode("ROMEO:\nBut soft, what light through yonder window breaks?\n" * 9)
    name = "blk.1.ffn_down.weight"
    x = model.weights[name].numpy()
    yield f"demo {name}", x, tl.imatrix(model, ids).importance(name, 1, x.shape[1])[0]


def compare_types():
    theirs = ggml()
    print(
        "type     values                      error / ggml's   weighted   time / ggml's   weighted"
    )
    for kind in TYPES:
        for name, x, weight in samples():
            ones = np.ones_like(weight)  # for types that ggml does not write without

            def error(raw, by=1.0, x=x, kind=kind):
                values = tl.Weight("w", x.shape, kind, raw.tobytes()).numpy(dtype=np.float64)
                return float(((values - x) ** 2 * by).mean())

            ratios, times = [], []
            for by in (None, weight):
                best = [np.inf, np.inf]
                for _ in range(5):
                    start = time.perf_counter()
                    a = _core.pack(kind, x, by, threads=1)
                    middle = time.perf_counter()
                    b = theirs(kind, x, ones if by is None and kind in COARSE else by)
                    end = time.perf_counter()
                    best = [min(best[0], middle - start), min(best[1], end - middle)]
                scale = 1.0 if by is None else by
                e = error(b, scale)
                ratios.append(error(a, scale) / e if e else np.nan)
                times.append(best[0] / best[1])
            print(
                f"{kind:8} {name:28} {ratios[0]:13.3f} {ratios[1]:10.3f} "
                f"{times[0]:15.2f} {times[1]:10.2f}"
            )


def compare_models(text, paths, tokens):
    for path in paths:
        model = tl.load(path)
        ids = model.tokenizer.encode(text)
        half = len(ids) // 2
        matrix = tl.imatrix(model, ids[: min(half, 8 * 512)])
        test = ids[half : half + tokens]
        print(f"{path}: KL divergence from the model with full weights, {len(test)} tokens")
        print("mix        bits   ours       llama.cpp    ratio    imatrix: ours, llama.cpp, ratio")
        for mix in COMPARED:
            row = []
            for imatrix in (None, matrix):
                for theirs in (False, True):
                    with tempfile.TemporaryDirectory() as folder:
                        out = Path(folder) / "m.gguf"
                        if theirs:
                            their_quantize(path, out, mix, imatrix)
                        else:
                            tl.quantize(path, out, mix, imatrix=imatrix)
                        small = tl.load(out)
                        row.append(tl.kl(model, small, test).mean)
                        weights = small.weights.values()
                        bits = 8 * sum(w.nbytes for w in weights)
                        bits /= sum(int(np.prod(w.shape)) for w in weights)
            ratios = [a / b if b else np.nan for a, b in (row[:2], row[2:])]
            print(
                f"{mix:8} {bits:6.2f} {row[0]:10.3e} {row[1]:10.3e} {ratios[0]:8.3f} "
                f"{row[2]:14.3e} {row[3]:10.3e} {ratios[1]:8.3f}",
                flush=True,
            )


def compare_target(text, paths, tokens, mix="Q4_K_M"):
    """Types chosen for the size of a mix, beside the mix of both quantizers."""
    for path in paths:
        model = tl.load(path)
        ids = model.tokenizer.encode(text)
        half = len(ids) // 2
        matrix = tl.imatrix(model, ids[: min(half, 4 * 512)])
        test = ids[half : half + tokens]
        print(f"{path}: KL divergence over {len(test)} tokens at the size of {mix}")
        for name, imatrix in (("without imatrix", None), ("with imatrix", matrix)):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "m.gguf"

                def measured(out=out, model=model, test=test):
                    small = tl.load(out)
                    nbytes = sum(w.nbytes for w in small.weights.values())
                    return f"{tl.kl(model, small, test).mean:.3e} ({nbytes:,} bytes)"

                their_quantize(path, out, mix, imatrix)
                print(f"{name}: llama.cpp {measured()}", flush=True)
                tl.quantize(path, out, mix, imatrix=imatrix)
                print(f"{name}: tinyllm   {measured()}", flush=True)
                start, busy = time.perf_counter(), time.process_time()
                found = tl.quantize(
                    path, out, target_bits=mix, text=ids[: min(half, 1400)], imatrix=imatrix
                )
                wall, busy = time.perf_counter() - start, time.process_time() - busy
                print(f"{name}: chosen    {measured()}, {wall:.0f} s, {busy:.0f} s of CPU time")
                print(found, flush=True)


def compare_perplexity(text, path, tokens, window=512):
    """The perplexity of the file of each mix, here and in llama.cpp, on the same windows."""
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    model = tl.load(path)
    ids = model.tokenizer.encode(text)[:tokens]
    matrix = tl.imatrix(model, ids[:512])
    print(f"{path}: perplexity over windows of {window} tokens")
    for mix in (*MIXES, "NVFP4"):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "m.gguf"
            if mix in MIXES:
                tl.quantize(path, out, mix, imatrix=matrix)
            else:  # a type without a mix
                tl.quantize(path, out, "Q8_0", types={"blk.*": mix})
            small = tl.load(out)
            ours = small.perplexity(ids, window=window).value
            theirs = llama_cpp.Llama(
                str(out), n_ctx=window, n_batch=window, logits_all=True, verbose=False, n_threads=2
            )
            scores = []
            for start in range(0, len(ids) - window + 1, window):
                chunk = list(ids[start : start + window])
                if small.tokenizer.add_bos:
                    chunk[0] = small.tokenizer.bos
                theirs.reset()
                theirs.eval(chunk)
                rows = np.array(theirs.scores[window // 2 : window - 1], np.float64)
                rows -= rows.max(axis=1, keepdims=True)
                sums = np.log(np.exp(rows).sum(axis=1))
                wanted = chunk[window // 2 + 1 :]
                scores.append(rows[np.arange(len(rows)), wanted] - sums)
            other = float(np.exp(-np.concatenate(scores).mean()))
            print(
                f"{mix:10} tinyllm {ours:9.4f}   llama.cpp {other:9.4f}   {other / ours - 1:+.3%}",
                flush=True,
            )


def add_noise(path, out):
    """Write the weights of a quantized file with noise, as F32."""
    file = tl.GGUF(path)
    random = np.random.default_rng(0)
    tensors = {}
    for name, weight in file.tensors.items():
        x = weight.numpy()
        if weight.type not in ("F32", "F16", "BF16"):
            x = x.reshape(-1, 16)
            gaps = np.diff(np.sort(x, axis=1), axis=1)
            large = 1e-5 * np.abs(x).max(axis=1, keepdims=True)
            # the smallest difference of two of 16 values is nearly always one step
            step = np.where(gaps > large, gaps, np.inf).min(axis=1, keepdims=True)
            step[~np.isfinite(step)] = 0
            x = x + step * random.uniform(-0.5, 0.5, x.shape)
        tensors[name] = x.astype(np.float32).reshape(weight.shape)
    tl.write_gguf(out, file.metadata.typed(), tensors)


def compare_time(path):
    model = tl.GGUF(path)
    count = sum(int(np.prod(w.shape)) for w in model.tensors.values())
    print(f"{path}: {count:,} values, seconds on 2 threads, the better of 2, interleaved")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "m.gguf"
        for mix in COMPARED:
            best = [np.inf, np.inf]
            for _ in range(2):
                start = time.perf_counter()
                tl.quantize(path, out, mix)
                middle = time.perf_counter()
                their_quantize(path, out, mix)
                end = time.perf_counter()
                best = [min(best[0], middle - start), min(best[1], end - middle)]
            print(
                f"{mix:8} ours {best[0]:7.2f}   llama.cpp {best[1]:7.2f}   "
                f"ratio {best[0] / best[1]:.2f}",
                flush=True,
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("types")
    for name in ("models", "target", "perplexity"):
        models = commands.add_parser(name)
        models.add_argument("text", type=Path)
        models.add_argument("model", nargs="+")
        models.add_argument("--tokens", type=int, default=1024)
    commands.add_parser("time").add_argument("model")
    noise = commands.add_parser("noise")
    noise.add_argument("model")
    noise.add_argument("out")
    args = parser.parse_args()
    if args.command == "types":
        compare_types()
    elif args.command == "models":
        compare_models(args.text.read_text("utf-8"), args.model, args.tokens)
    elif args.command == "target":
        compare_target(args.text.read_text("utf-8"), args.model, args.tokens)
    elif args.command == "perplexity":
        for path in args.model:
            compare_perplexity(args.text.read_text("utf-8"), path, args.tokens)
    elif args.command == "noise":
        add_noise(args.model, args.out)
    else:
        compare_time(args.model)


if __name__ == "__main__":
    main()
