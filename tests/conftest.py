"""Settings for all tests."""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

# Processes that tests start import the installed package, not the source tree around them.
os.environ["PYTHONSAFEPATH"] = "1"
# NumPy's threads spin while they wait: small products take a hundred times as long where other
# processes use the cores. It reads this when it is first imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# A shell starts background jobs, and nohup everything, with SIGINT ignored. Python then installs no
# handler, and the processes that tests start would ignore Ctrl-C as well.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: The tests of ``pytest -m smoke``: each part of tinyllm once, in less than 20 seconds.
SMOKE = (
    "core/test_types.py",
    "model/test_demo.py",
    "files/test_gguf.py",
    "tokenizer/test_special.py",
    "generation/test_keywords.py",
    "trace/test_trace.py",
    "trace/test_edits.py",
    "runtime/test_session.py",
    "evaluation/test_scoring.py",
    "chat/test_calls.py",
    "cli/test_generate.py",
    "project/test_public.py",
)
ROOT = Path(__file__).parent


def _is_smoke(path):
    return path.is_relative_to(ROOT) and path.relative_to(ROOT).as_posix() in SMOKE


def pytest_ignore_collect(collection_path, config):
    """Read no other files for ``-m smoke``: that alone would take seconds."""
    other = collection_path.suffix == ".py" and not _is_smoke(collection_path)
    return True if config.option.markexpr == "smoke" and other else None


def pytest_collection_modifyitems(items):
    """Mark the tests of `SMOKE`."""
    for item in items:
        if _is_smoke(item.path) and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.smoke)


def pytest_terminal_summary(terminalreporter):
    """Say each reason for skips once."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
        for report in terminalreporter.stats.get("skipped", ())
    )
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"skipped {count}: {reason}")
