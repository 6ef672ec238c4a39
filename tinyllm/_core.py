"""Stands in for the compiled core where it is missing, and says what to do.

Python prefers the compiled module of this name, if there is one.
"""

from pathlib import Path

raise ImportError(
    f"{Path(__file__).parent} is the source of tinyllm without its compiled core: run Python from "
    "another folder to use the tinyllm that is installed, or build the core here with "
    "python setup.py build_ext --inplace"
)
