"""Settings of Sphinx: pages from the files in this folder, and one page per public object.

Build: ``sphinx-build -W docs site``, with ``pip install sphinx myst-parser``. The pages of the
public objects are made from their docstrings, in the folder `reference`, which is not committed.
"""

import inspect
from pathlib import Path

import tinyllm

project = "tinyllm"
author = "The tinyllm authors"
version = release = tinyllm.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["Thumbs.db"]
html_theme = "alabaster"
html_theme_options = {"description": "Language models with every number as a NumPy array"}
templates_path = []
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say the types
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
myst_heading_anchors = 4
# links to files outside of this folder work in the repository, and not on these pages
suppress_warnings = ["myst.xref_missing", "myst.header"]

FOLDER = Path(__file__).parent / "reference"


def page(name, value):
    """Return the page of a public name."""
    title = f"tinyllm.{name}"
    lines = [title, "=" * len(title), ""]
    if inspect.ismodule(value):
        lines += [f".. automodule:: tinyllm.{name}", "   :members:", "   :no-index:"]
    elif inspect.isclass(value):
        lines += [".. currentmodule:: tinyllm", "", f".. autoclass:: {name}", "   :members:",
                  "   :inherited-members: BaseException, object, Mapping, tuple"]  # fmt: skip
        if hidden := getattr(value.__dir__, "hidden", ()):
            lines.append(f"   :exclude-members: {', '.join(hidden)}")
    else:
        lines += [".. currentmodule:: tinyllm", "", f".. autofunction:: {name}"]
    return "\n".join(lines) + "\n"


def write_reference():
    """Write a page for each public name, and their list."""
    FOLDER.mkdir(exist_ok=True)
    names = [name for name in dir(tinyllm) if not name.startswith("_")]
    pages = {name: page(name, getattr(tinyllm, name)) for name in names}
    toc = "\n".join(f"   {name} <{file(name)}>" for name in sorted(names, key=str.lower))
    pages["index"] = f"Reference\n=========\n\n.. toctree::\n   :maxdepth: 1\n\n{toc}\n"
    wanted = {FOLDER / f"{file(name)}.rst": text for name, text in pages.items()}
    for old in set(FOLDER.glob("*.rst")) - set(wanted):
        old.unlink()
    for path, text in wanted.items():
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


def file(name):
    """Return the name of a page; CPU and cpu are two names, also where files have no case."""
    return f"{name}-class" if name[0].isupper() else name


write_reference()
