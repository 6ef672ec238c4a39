"""Which tensor becomes which type: recorded from llama.cpp for models of several shapes.

``tests/live/test_quantization.py`` compares with llama.cpp itself and can write the record anew.
"""

import json
from pathlib import Path

import pytest

from testkit.architectures import random_architecture
from tinyllm.quantization.mixes import MIXES, choose_types, is_matrix

RECORD = json.loads((Path(__file__).parent / "llama_cpp_types.json").read_text())

#: The models of the record: (architecture, options of `random_architecture`).
SHAPES = {
    "llama, 16 layers": ("llama", {"layers": 16}),
    "llama, rows of 320, one key head": ("llama", {"layers": 9, "kv_heads": 1, "width": 320}),
    "falcon": ("falcon", {"layers": 16}),
    "qwen3moe": ("qwen3moe", {}),
    "gpt2": ("gpt2", {"layers": 8}),
    "gemma3": ("gemma3", {}),
}


def shapes(name):
    architecture, options = SHAPES[name]
    metadata, tensors = random_architecture(
        architecture, "F16", vocab=64, ffn=256, context=128, **options
    )
    return metadata, tensors


def letters(types):
    """The types of the tensors in the order of their names, a letter each."""
    return "".join(RECORD["letters"][types[name]] for name in sorted(types))


@pytest.mark.parametrize("name", SHAPES)
def test_every_mix_gives_each_tensor_the_type_that_llama_cpp_gives_it(name):
    metadata, tensors = shapes(name)
    sizes = {key: (weight.shape, weight.type) for key, weight in tensors.items()}
    cases = RECORD["shapes"][name]
    missing = set(MIXES) - {case.split("+")[0] for case in cases}
    assert missing <= {"Q1_0"}  # where llama.cpp refuses the length of the rows
    for case, expected in cases.items():
        mix, _, imatrix = case.partition("+")
        found = choose_types(metadata, sizes, mix, imatrix=bool(imatrix))
        assert list(found) == list(sizes)
        assert letters(found) == expected, case


def test_patterns_win_over_the_mix_and_types_that_do_not_fit_are_replaced():
    sizes = {
        "output.weight": ((64, 256), "F32"),
        "blk.0.attn_q.weight": ((64, 256), "F32"),
        "blk.0.ffn_down.weight": ((64, 96), "F32"),
        "blk.0.ffn_up.weight": ((64, 33), "F32"),
        "blk.0.attn_norm.weight": ((256,), "F32"),
    }
    types = {"blk.*.attn_q.*": "Q2_K", "*.attn_q.weight": "Q8_0", "*down*": "Q6_K", "*_up*": "Q4_0"}
    found = choose_types({"general.architecture": "llama"}, sizes, "Q4_K_S", types=types)
    assert list(found.values()) == ["Q6_K", "Q2_K", "Q8_0", "F16", "F32"]


def test_what_is_no_matrix():
    assert is_matrix("blk.0.ffn_up_exps.weight", (4, 8, 8))
    assert not is_matrix("blk.0.attn_q.bias", (8, 8))
    assert not is_matrix("blk.0.attn_q.weight", (1, 8))
    assert not is_matrix("blk.0.ffn_gate_inp.weight", (8, 8))
    assert not is_matrix("token_types.weight", (2, 8))
