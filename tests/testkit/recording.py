"""Hashes of everything that a model computes: a program and a library for test_recording.py.

python recording.py FILE: writes the digests of one random model per type and mode, and of one in
Q8_0 with the shape of the demo model ("tied"), to FILE. The digests in recording.json never change.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

import tinyllm as tl
from testkit import models
from testkit.exact_arithmetic import OTHER_FAST
from tinyllm import _core

TOKENS = 40
CASES = [(name, mode) for name in (*models.TYPES, "tied") for mode in ("exact", "fast")]
if _core.kernel_set() in OTHER_FAST["BF16"]:  # whose bits tests/core/test_kernels.py checks
    CASES.remove(("BF16", "fast"))


def key(type_name, mode):
    """Return the name of a digest; only fast Q8_0 depends on the instruction set."""
    words = mode == "fast" and _core.kernel_set() in OTHER_FAST["Q8_0"]
    words = words and type_name in ("Q8_0", "tied")
    return f"{type_name} {mode}{' int16' if words else ''}"


def write(path, type_name):
    """Write the model of a case and return its path."""
    if type_name == "tied":
        shape = {"layers": 4, "ffn": 768, "vocab": 1024, "context": 512, "tied": True}
        return models.write(path, *models.random_llama("Q8_0", **shape))
    return models.write(path, *models.random_llama(type_name))


def edits(model, clean):
    """One edit of each kind, on taps of every shape."""
    direction = np.linspace(-1, 1, model.config.width, dtype=np.float32)
    return [
        tl.add("blk.0.resid_pre", direction, at=-1),
        tl.scale("blk.0.attn_q", 1.25, head=1),
        tl.zero("blk.0.attn_probs", head=0, at=5),
        tl.add("blk.1.attn_scores", 0.5, at=[3, 4]),
        tl.mean("blk.0.ffn_down", at=slice(2, 9)),
        tl.set("blk.1.ffn_norm_scale", 0.75, at=2),
        tl.apply("blk.1.ffn_act", np.negative, at=7),
        tl.patch("blk.1.attn_output", clean, at=1),
        tl.scale("output", 0.5),
    ]


def digest(path, mode):
    """Return the digests of a file's logits, traces, edits, sessions and batches."""
    model = tl.load(path, mode=mode, threads=2)
    ids = np.random.default_rng(7).integers(0, model.config.vocab_size, TOKENS)
    clean = model.trace(ids, "*")
    result = {}

    def record(name, arrays):
        hashed = hashlib.sha256()
        for array in arrays:
            hashed.update(np.ascontiguousarray(array).tobytes())
        result[name] = hashed.hexdigest()[:16]

    def taps(trace):
        return [
            part for tap in trace for part in (np.frombuffer(tap.encode(), np.uint8), trace[tap])
        ]

    record("trace", taps(clean))
    record("default capture", taps(model.trace(ids)))
    record("logits", [model.logits(ids)])
    record("edits", taps(model.trace(ids, "*", edits=edits(model, clean))))
    record("run_from", taps(model.run_from(1, clean["blk.1.resid_pre"], "*")))
    batch = model.trace(
        [list(ids[:9]), list(ids[3:4]), list(ids)], "*", edits=[tl.zero("blk.*.attn_mix", head=0)]
    )
    record("batch", [array for trace in batch for array in taps(trace)])
    session = model.session()
    parts = [session.eval(ids[:17], "all"), session.eval(ids[17:18])]
    fork = session.fork()
    session.rewind(4)
    parts += [session.eval(ids[14:]), *taps(fork.eval(ids[20:24], capture="*"))]
    parts += session.core.cache(1)
    parts.append(fork.eval(ids[24:25], edits=[tl.add("blk.1.resid_post", 0.25)]))
    record("session", parts)
    return result


def record(directory):
    """Return case -> digests for every type and mode."""
    result = {}
    for type_name, mode in CASES:
        path = write(Path(directory) / f"{type_name}.gguf", type_name)
        result[key(type_name, mode)] = digest(path, mode)
    return result


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        path = Path(sys.argv[1])
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**known, **record(directory)}, indent=1) + "\n")
