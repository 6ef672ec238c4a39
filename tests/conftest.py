"""Settings for all tests."""

import os

# Processes that tests start import the installed package, not the source tree around them.
os.environ["PYTHONSAFEPATH"] = "1"
# NumPy's threads spin while they wait: small products take a hundred times as long where other
# processes use the cores. It reads this when it is first imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
