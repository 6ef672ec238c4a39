"""What to dump first, and how, for a person who has no values yet."""

from __future__ import annotations

from typing import Any

from ..display.table import Table

__all__ = ["SNIPPETS", "guide"]

#: The values to begin with, by role, and why.
_FIRST = (
    ("logits", "decides whether anything is wrong"),
    ("resid_post", "shows in which block"),
    ("queries", ""),
    ("keys", ""),
    ("values", ""),
    ("attn_mix", "shows RoPE, mask, scale, heads and cache"),
    ("attn_add", ""),
    ("ffn_input", "shows the norms"),
    ("ffn_hidden", "shows the activation"),
)

#: How to write a float32 array of two axes as .npy (numpy.lib.format, version 1.0).
SNIPPETS = {
    "Python": """\
import numpy as np
values = {}                                   # fill it while the engine runs one prompt
values["blk.0.attn_q"] = np.asarray(q)        # (tokens, heads, head size), float32
values["tokens"] = np.asarray(ids)            # the ids that the engine ran
np.savez("engine.npz", **values)""",
    "C": """\
void dump(const char *tap, const float *x, int rows, int columns) {   /* writes tap.npy */
    char path[300], head[118]; snprintf(path, sizeof path, "dump/%s.npy", tap);
    int n = snprintf(head, sizeof head, "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, %d), }", rows, columns);
    memset(head + n, ' ', sizeof head - n); head[117] = '\\n'; FILE *f = fopen(path, "wb");
    fwrite("\\x93NUMPY\\1\\0v\\0", 1, 10, f); fwrite(head, 1, 118, f); fwrite(x, 4, (size_t)rows * columns, f); fclose(f); }""",
    "Rust": """\
fn dump(tap: &str, x: &[f32], rows: usize) -> std::io::Result<()> {   // writes tap.npy
    let head = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", rows, x.len() / rows);
    let mut file = b"\\x93NUMPY\\x01\\x00v\\x00".to_vec(); file.extend(format!("{head:<117}\\n").bytes());
    file.extend(x.iter().flat_map(|v| v.to_le_bytes()));
    std::fs::write(format!("dump/{tap}.npy"), file) }""",
}  # fmt: skip


def guide(model: Any) -> str:
    """Return what to dump from an engine that runs a model.

    Parameters
    ----------
    model : tinyllm.Model

    Returns
    -------
    str

    Examples
    --------
    >>> import tinyllm as tl
    >>> from tinyllm.diagnosis.guide import guide
    >>> print(guide(tl.load()))  # doctest: +ELLIPSIS
    There are no values to examine. ...
    """
    rows = []
    for role, why in _FIRST:
        names = model.steps.roles(role)
        if names:
            step = model.steps[names[-1] if role == "logits" else names[0]]
            axes = ("T", *map(str, step.shape))
            name = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"
            rows.append((name, f"({', '.join(axes)})", why))
    codes = "\n\n".join(f"{name}:\n{code}" for name, code in SNIPPETS.items())
    return (
        "There are no values to examine. Run one prompt of 8 to 32 tokens with the engine, write "
        "these values in float32,\nand call tl.doctor(model, tl.read(path), prompt). T is the "
        "number of tokens. Begin with the first line; each\nfurther line tells more. All names: "
        "print(model.steps).\n\n"
        f"{Table(('name', 'shape', 'why'), rows)}\n\n"
        "The ids of a greedy generation alone tell something, too: dump = {'ids': [...]}, with "
        "the prompt as tokens.\n\n"
        f"{codes}\n"
    )
