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
values = {}                              # fill it while the engine runs one prompt
values["blk.0.attn_q"] = np.asarray(q)   # (tokens, heads, head size), float32
values["tokens"] = np.asarray(ids)       # the ids that the engine ran
np.savez("engine.npz", **values)""",
    "C": """\
/* dump("dump/blk.0.attn_q.npy", q, tokens, heads * head_size); */
void dump(const char *path, const float *x, int rows, int columns) {
    const char *dict = "{'descr': '<f4', 'fortran_order': False, 'shape': (%9d, %9d), }";
    FILE *f = fopen(path, "wb");
    fwrite("\\x93NUMPY\\1\\0v\\0", 1, 10, f);
    int n = fprintf(f, dict, rows, columns);
    fprintf(f, "%*s\\n", 117 - n, "");
    fwrite(x, 4, (size_t)rows * columns, f); fclose(f); }""",
    "Rust": """\
// dump("dump/blk.0.attn_q.npy", &q, tokens)?;
fn dump(path: &str, x: &[f32], rows: usize) -> std::io::Result<()> {
    let dict = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {}), }}",
                       x.len() / rows);
    let mut file = b"\\x93NUMPY\\x01\\x00v\\x00".to_vec();
    file.extend(format!("{dict:<117}\\n").bytes());
    file.extend(x.iter().flat_map(|v| v.to_le_bytes()));
    std::fs::write(path, file) }""",
}


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
        "The ids of a greedy generation alone tell something, too: dump = {'generated': [...]}, "
        "with the prompt as tokens.\n\n"
        f"{codes}\n"
    )
