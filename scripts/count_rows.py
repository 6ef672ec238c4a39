"""Count the lines that each architecture costs, and compare them with llama.cpp's source files.

python scripts/count_rows.py [--llama-cpp FOLDER] [--all]

An architecture costs its row in tinyllm/architectures, its row in tinyllm/conversion, and the
functions and constants of these packages that no other architecture uses. What several of them use
counts for none. FOLDER is a checkout of llama.cpp, whose src/models/*.cpp read the keys of an
architecture, load its tensors and build its graph. Its conversion is not counted.
"""

from __future__ import annotations

import argparse
import ast
import collections
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[1] / "tinyllm"


def lines_of(node: ast.AST) -> int:
    """Return how many lines a piece of source has."""
    return int(node.end_lineno) - int(node.lineno) + 1  # type: ignore[attr-defined]


class Module:
    """A module of a package: its definitions, and what its names mean."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.body = ast.parse(path.read_text(encoding="utf-8")).body
        self.made: dict[str, ast.stmt] = {}
        self.imported: dict[str, tuple[str, str]] = {}  # module and name; no name: the module
        for node in self.body:
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                for alias in node.names:
                    local = alias.asname or alias.name
                    of = (node.module, alias.name) if node.module else (alias.name, "")
                    self.imported[local] = of
            for name in defined(node):
                self.made[name] = node

    def uses(self, node: ast.AST) -> set[tuple[str, str]]:
        """Return the definitions that a piece of this module's source uses: module and name."""
        found = set()
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and part.id in self.made:
                found.add((self.name, part.id))
            elif isinstance(part, ast.Name) and self.imported.get(part.id, ("", ""))[1]:
                found.add(self.imported[part.id])
            elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
                module, name = self.imported.get(part.value.id, ("", "."))
                if not name:
                    found.add((module, part.attr))
        return found


def defined(node: ast.stmt) -> list[str]:
    """Return the names that a statement at the top of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


class Package:
    """The rows of a package, which stand in some tables, and the definitions that they use."""

    def __init__(self, folder: Path, tables: tuple[str, ...]) -> None:
        self.modules = {path.stem: Module(path) for path in sorted(folder.glob("*.py"))}
        self.rows: dict[str, tuple[Module, ast.expr]] = {}
        for module in self.modules.values():
            for name in tables:
                table = module.made.pop(name, None)
                value = getattr(table, "value", None)
                if isinstance(value, ast.Dict):
                    for key, row in zip(value.keys, value.values, strict=True):
                        if isinstance(key, ast.Constant):
                            self.rows[str(key.value)] = module, row

    def used_by(self, row: str) -> set[tuple[str, str]]:
        """Return the definitions that a row uses, also through others."""
        module, node = self.rows[row]
        found: set[tuple[str, str]] = set()
        wanted = module.uses(node)
        while wanted:
            where, name = wanted.pop()
            other = self.modules.get(where)
            if other is None or name not in other.made or (where, name) in found:
                continue
            found.add((where, name))
            wanted |= other.uses(other.made[name])
        return found

    def costs(self) -> dict[str, tuple[int, int]]:
        """Return the lines of each row, and those of the definitions that it alone uses."""
        uses = {name: self.used_by(name) for name in self.rows}
        users = collections.Counter(name for used in uses.values() for name in used)
        return {
            name: (
                lines_of(row),
                sum(
                    lines_of(self.modules[where].made[each])
                    for where, each in uses[name]
                    if users[where, each] == 1
                ),
            )
            for name, (_, row) in self.rows.items()
        }


def shown(what: str, values: list[int]) -> str:
    """Return a line of the table."""
    return f"| {what} | {len(values)} | {statistics.median(values):.0f} | {max(values)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-cpp", type=Path, help="a checkout of llama.cpp")
    parser.add_argument("--all", action="store_true", help="a line for each architecture")
    options = parser.parse_args()
    tables = tuple("DENSE EXPERT_MODELS LATENT HYBRID RECURRENT ENCODERS T5".split())
    plans = Package(ROOT / "architectures", ("ARCHITECTURES",)).costs()
    conversions = Package(ROOT / "conversion", tables).costs()
    if options.all:
        for name, (row, own) in sorted(plans.items(), key=lambda item: -sum(item[1])):
            print(f"{name:20} row {row:3}, own {own:3}, conversion {conversions.get(name, (0, 0))}")
    print("| lines of an architecture | number | median | largest |\n|---|---|---|---|")
    print(shown("row", [row for row, _ in plans.values()]))
    print(shown("row, and builders of its own", [row + own for row, own in plans.values()]))
    print(shown("conversion, with functions of its own", [sum(v) for v in conversions.values()]))
    both = [sum(v) + sum(conversions.get(name, (0, 0))) for name, v in plans.items()]
    print(shown("all of these", both))
    if options.llama_cpp:
        ours = {name.replace("_", "-") for name in plans}
        files = (options.llama_cpp / "src" / "models").glob("*.cpp")
        sizes = [
            len(path.read_text(encoding="utf-8").splitlines())
            for path in files
            if path.stem.replace("_", "-") in ours
        ]
        print(shown("llama.cpp, file of the same name in `src/models`", sizes))


if __name__ == "__main__":
    main()
