"""Python imports this module first: a process that has it in its path has NumPy and no more.

The variable TINYLLM_TEST_ALLOW names further packages, or is * for all.
"""

import os
import sys


class Only:
    """Refuses to find packages that were not asked for."""

    def __init__(self):
        self.more = os.environ.get("TINYLLM_TEST_ALLOW", "").split()

    def find_spec(self, name, path=None, target=None):
        """Raise for a package that is not allowed."""
        top = name.partition(".")[0]
        known = {"numpy", "tinyllm", "sitecustomize", *sys.stdlib_module_names, *self.more}
        if top in known or "*" in self.more or top.startswith("_sysconfigdata"):
            return None
        raise ModuleNotFoundError(f"No module named {top!r}", name=top)


sys.meta_path.insert(0, Only())
