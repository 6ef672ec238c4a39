"""Test data that is too large for the repository. Only this module reads TINYLLM_TEST_DATA."""

import os
import warnings
from functools import cache
from pathlib import Path

import pytest

from testkit.gguf_bytes import read_metadata
from tinyllm.tokenizer import Tokenizer, tokenizer_from_metadata
from tinyllm.tokenizer.bpe import BpeTokenizer
from tinyllm.tokenizer.spm import SpmTokenizer

FOLDER = os.environ.get("TINYLLM_TEST_DATA")


def path(*parts: str) -> Path:
    """Return a path in the test data.

    Without test data the calling test is skipped. With CI=1 in the environment it fails.
    """
    if FOLDER:
        return Path(FOLDER, *parts)
    reason = "needs TINYLLM_TEST_DATA: the folder of external test data"
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@cache
def tokenizer(file: str, use_core: bool = True) -> Tokenizer:
    """Return the tokenizer of one of the vocabularies, run by the C core or in Python."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr(SpmTokenizer, "use_core", use_core)
        patch.setattr(BpeTokenizer, "use_core", use_core)
        found = tokenizer_from_metadata(read_metadata(path("vocab", file)))
    assert found is not None
    return found
