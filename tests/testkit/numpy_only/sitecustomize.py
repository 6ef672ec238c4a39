"""Python imports this module first: a process that has it in its path has NumPy and no more.

The variable TINYLLM_TEST_ALLOW names further packages, or is * for all.
"""

import os
import sys


class Only:
    """Refuses to find packages that were not asked for."""

    allowed = {"numpy", "tinyllm", "sitecustomize"}
    more = os.environ.get("TINYLLM_TEST_ALLOW", "").split()

    def allow(self, package):
        """Allow a package; any other that needs many is allowed with all of them."""
        self.more.append(package)

    def find_spec(self, name, path=None, target=None):
        """Raise for a package that is not allowed."""
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in self.allowed or "*" in self.more:
            return None
        if top in self.more:
            return None
        raise ModuleNotFoundError(f"No module named {top!r}", name=top)


sys.meta_path.insert(0, Only())
