"""Real models, which are too large for the repository: where they lie, and texts to try on them.

scripts/real_models.py fetches them from PyPI into a folder. TINYLLM_REAL_MODELS names the folder.
"""

import hashlib
import os
from pathlib import Path

import pytest

FOLDER = os.environ.get("TINYLLM_REAL_MODELS")

#: The GGUF files, by the names that scripts/real_models.py gives them.
GGUFS = ("smollm2-135m-q4_1", "gemma3-270m-q4_k_m", "qwen2.5-coder-0.5b-q4_k_m")
MINILM = "all-minilm-l6-v2"

SENTENCES = (
    "The capital of France is Paris, and the capital of Italy is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Wer im Glashaus sitzt, sollte nicht mit Steinen werfen. Straße, Übergröße, naïve façade.",
    "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "我能吞下玻璃而不伤身体。今天天气很好，我们去公园吧！",
    "いろはにほへと ちりぬるを。カタカナとひらがな、漢字が混ざる。",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر",
    "मुझे हिन्दी में लिखना पसंद है। यह एक परीक्षण है।",
    "Emoji: 👩‍👩‍👧‍👦 🇫🇷 👍🏽 ✈️ 😀😀😀 and a flag 🏳️‍🌈.",
    "1234567890 3.14159 -1e-7 0xDEADBEEF 1,000,000 12:34:56 2024-02-29",
    "I'm, you're, they'LL, we've, it's; don't! 'quoted' \"double\" `tick`",
    "  two spaces   three    four\ttab\t\ttabs \n\n\nnew lines\r\nwindows ends \n",
    '{"key": [1, 2.5, null, true], "nested": {"a": "b\\n"}}',
    "<b>bold</b> &amp; <a href='https://example.org/?q=1&r=2#top'>link</a>",
    "for (int i = 0; i < n; i++) { sum += a[i] * b[i]; } // dot product",
    "Combining: e\u0301 a\u0308 n\u0303, zero width:\u200b\u200d, "
    "no break:\u00a0, soft\u00adhyphen",
    "한국어 문장도 있습니다. 띄어쓰기가 중요합니다.",
    "Thaiไทยไม่มีช่องว่าง และ Greek Ελληνικά ΣΊΣΥΦΟΣ",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β → ∑ᵢ xᵢ² ≤ ∞, ½ ¾ ² ³ ①②",
    "ALL CAPS SHOUTING, camelCaseWords, snake_case_words, kebab-case-words, x.y.z",
)


def texts() -> list[str]:
    """Return 200 texts: the sentences whole, cut, joined, repeated, and in another case."""
    found = list(SENTENCES)
    for number, sentence in enumerate(SENTENCES):
        other = SENTENCES[(number + 7) % len(SENTENCES)]
        found += [
            sentence[number % 5 + 1 :],
            sentence[: len(sentence) // 2],
            sentence.upper(),
            " " + sentence.strip() + " ",
            sentence + other,
            "\n".join((other, sentence)),
            sentence[::-1],
            " ".join(sentence),
            sentence[:9] * 5,
        ]
    return found


def digest(ids: list[int]) -> str:
    """Return a short hash of token ids."""
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:12]


def path(name: str) -> Path:
    """Return a path among the real models; without them the calling test is skipped.

    With CI=1 in the environment it fails: CI fetches them.
    """
    if FOLDER and Path(FOLDER, name).exists():
        return Path(FOLDER, name)
    reason = f"needs {name} in TINYLLM_REAL_MODELS: run scripts/real_models.py fetch FOLDER"
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
