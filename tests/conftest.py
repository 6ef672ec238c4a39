"""Settings for all tests."""

import os

# Processes that tests start import the installed package, not the source tree around them.
os.environ["PYTHONSAFEPATH"] = "1"
