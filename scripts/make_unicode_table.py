"""Write tinyllm/tokenizer/unicode_table.py: code point ranges of the Unicode general categories.

The table is checked in, so that the ids of a text do not depend on the Unicode version of the
running Python. Needs the `regex` package, whose tables are newer than the standard library's:

    pip install regex && python scripts/make_unicode_table.py
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import regex

CATEGORIES = (
    "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co"
).split()
OTHER = {"Han": r"\p{Script=Han}", "White_Space": r"\p{White_Space}"}
HEADER = '''"""Code points by Unicode property. Made by scripts/make_unicode_table.py: do not edit.

From the regex package {version}. Each value is a list of hexadecimal code points and ranges.
"""

__all__ = ["RANGES"]

'''


def ranges(pattern: str) -> str:
    """Return the code points that match as ``41-5A 61``."""
    match = regex.compile(pattern).match
    found: list[list[int]] = []
    for code in range(sys.maxunicode + 1):
        if match(chr(code)):
            if found and found[-1][1] == code - 1:
                found[-1][1] = code
            else:
                found.append([code, code])
    return " ".join(f"{a:X}" if a == b else f"{a:X}-{b:X}" for a, b in found)


def main() -> None:
    properties = {name: rf"\p{{{name}}}" for name in CATEGORIES} | OTHER
    text = HEADER.format(version=version("regex")) + "RANGES = {\n"
    for name, pattern in properties.items():
        text += f'    "{name}": (\n'
        line = ""
        for word in ranges(pattern).split():
            if len(line) + len(word) > 84:
                text += f'        "{line}"\n'
                line = ""
            line += word + " "
        text += f'        "{line.rstrip()}"\n    ),\n'
    target = Path(__file__).parents[1] / "tinyllm" / "tokenizer" / "unicode_table.py"
    target.write_text(text + "}\n", encoding="ascii")


if __name__ == "__main__":
    main()
