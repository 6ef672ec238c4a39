"""Write csrc/types/grid_codes.c: the codebooks of the tensor types IQ1, IQ2 and IQ3.

    python scripts/make_grid_codes.py

The codebooks are those of ggml (ggml-common.h: iq1s_grid, iq2xxs_grid, ...), read from PyPI gguf.
"""

from pathlib import Path

import gguf.quants

OUT = Path(__file__).resolve().parents[1] / "csrc" / "types" / "grid_codes.c"

#: The class in gguf.quants, and the table in C.
TABLES = {
    "IQ1_S": "tl_codes_iq1",
    "IQ2_XXS": "tl_codes_iq2_xxs",
    "IQ2_XS": "tl_codes_iq2_xs",
    "IQ2_S": "tl_codes_iq2_s",
    "IQ3_XXS": "tl_codes_iq3_xxs",
    "IQ3_S": "tl_codes_iq3_s",
}

HEAD = """\
/*
 * grid_codes.c - the codebooks of IQ1, IQ2 and IQ3, as grids.h describes them.
 *
 * Written by scripts/make_grid_codes.py from PyPI gguf; the grids are ggml's (ggml-common.h).
 */
#include "types/grids.h"
"""


def codes(type_name: str) -> list[int]:
    """Return the code of each entry: the place of its values in the list of levels, as bits."""
    kind = getattr(gguf.quants, type_name)
    kind.init_grid()
    levels = [int(level) for level in kind.grid_map]
    bits = 2 if len(levels) <= 4 else 4
    rows = kind.grid.reshape(kind.grid_shape).astype(int).tolist()
    return [sum(levels.index(v) << bits * i for i, v in enumerate(row)) for row in rows]


def main() -> None:
    """Write the file."""
    parts = [HEAD]
    for type_name, table in TABLES.items():
        numbers = codes(type_name) + [0] * (type_name == "IQ2_S")  # gathers read four bytes
        lines = [numbers[i : i + 12] for i in range(0, len(numbers), 12)]
        rows = ",\n".join("    " + ", ".join(f"0x{n:04x}" for n in line) for line in lines)
        parts.append(f"\nconst uint16_t {table}[{len(numbers)}] = {{\n{rows}}};\n")
    OUT.write_text("".join(parts), "utf-8")


if __name__ == "__main__":
    main()
