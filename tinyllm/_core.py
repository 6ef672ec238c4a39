"""Raises an ImportError with instructions when the compiled core is missing.

Python prefers the compiled module of the same name if it exists.
"""

from pathlib import Path

raise ImportError(
    f"{Path(__file__).parent} is the source of tinyllm without its compiled core: run Python from "
    "another folder to use the installed tinyllm, or build the core here with "
    "python setup.py build_ext --inplace"
)
