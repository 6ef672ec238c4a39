"""Types that are chosen for a size."""

import itertools
import os

import numpy as np
import pytest

import tinyllm as tl
from testkit.architectures import random_architecture
from tinyllm import _core
from tinyllm.cli.main import main
from tinyllm.quantization import sensitivity, target

TEXT = (
    "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer the "
    "slings and arrows of outrageous fortune, or to take arms against a sea of troubles, and by "
    "opposing end them. To die: to sleep; no more; and by a sleep to say we end the heart-ache and "
    "the thousand natural shocks that flesh is heir to, 'tis a consummation devoutly to be wish'd."
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("target") / "m.gguf"
    tl.write_gguf(path, *random_architecture("llama", "F16", vocab=64))
    return path


def ids(n=120, vocab=64):
    return np.random.default_rng(1).integers(0, vocab, n).astype(np.int32)


#: Errors of keys and values of several tokens add up, where the estimate takes them as independent.
ATTENTION, OTHERS = (0.3, 1.3), (0.75, 1.3)
CASES = (
    ("llama", "blk.0.attn_k.weight", ATTENTION),
    ("llama", "blk.1.attn_output.weight", OTHERS),
    ("llama", "blk.1.ffn_down.weight", OTHERS),
    ("llama", "token_embd.weight", OTHERS),  # looked up
    ("llama", "output.weight", OTHERS),
    ("phi3", "blk.1.attn_qkv.weight", ATTENTION),  # one tensor for three steps
    ("phi3", "blk.1.ffn_up.weight", OTHERS),
    ("qwen3moe", "blk.1.ffn_gate_up_exps.weight", OTHERS),
    ("qwen3moe", "blk.1.ffn_down_exps.weight", OTHERS),
)


@pytest.mark.parametrize(("arch", "name", "bounds"), CASES)
def test_the_estimate_is_the_divergence_of_rounding_one_tensor(arch, name, bounds, tmp_path):
    path = tmp_path / "m.gguf"
    tl.write_gguf(path, *random_architecture(arch, "F32", vocab=64))
    model, tokens = tl.load(path), ids(512)
    uses = sensitivity.observe(model, tokens, progress=False)
    found = sensitivity.divergence(model.weights[name], "Q4_0", None, uses[name])
    tl.quantize(path, tmp_path / "one.gguf", "F32", types={name: "Q4_0"})
    measured = tl.kl(model, tl.load(tmp_path / "one.gguf"), tokens, 256).mean
    assert bounds[0] < found / measured < bounds[1]


def test_a_matrix_for_each_head(tmp_path):
    path = tmp_path / "m.gguf"
    tl.write_gguf(path, *random_architecture("deepseek2", "F32", vocab=64))
    model = tl.load(path)
    name = "blk.0.attn_v_b.weight"
    (use,) = sensitivity.observe(model, ids(40), progress=False)[name]
    weight = model.weights[name]
    found = sensitivity.divergence(weight, "Q8_0", None, [use])
    raw = _core.pack("Q8_0", weight.numpy().reshape(-1, weight.shape[-1]))
    error = tl.Weight(name, weight.shape, "Q8_0", raw).numpy(dtype=np.float64) - weight.numpy()
    heads = weight.shape[0]
    x, slope = (v.astype(np.float64).reshape(use.n, heads, -1) for v in (use.inputs, use.slopes))
    change = np.einsum("hmn,thn,thm->t", error, x, slope)
    assert found == pytest.approx((change**2).mean() / 2, rel=1e-4)


def test_the_solution_is_near_the_best_one():
    random = np.random.default_rng(0)
    for _ in range(20):
        points = {}
        for name in "abcd":
            sizes = np.cumsum(random.integers(20, 60, 4))
            values = np.sort(random.lognormal(0, 2, 4))[::-1]
            points[name] = target._hull(
                target._Point(int(s), float(v), f"T{s}") for s, v in zip(sizes, values, strict=True)
            )
        least = sum(options[0].nbytes for options in points.values())
        budget = least + int(random.integers(0, 200))
        chosen, _ = target._solve(points, budget)

        def cost(choice, points=points):
            taken = [points[name][i] for name, i in zip("abcd", choice, strict=True)]
            return sum(p.nbytes for p in taken), sum(p.kl for p in taken)

        nbytes, kl = cost([chosen[name] for name in "abcd"])
        assert nbytes <= budget
        every = [cost(c) for c in itertools.product(*(range(len(points[n])) for n in "abcd"))]
        best = min(kl for nbytes, kl in every if nbytes <= budget)
        step = max(
            a.kl - b.kl for options in points.values() for a, b in itertools.pairwise(options)
        )
        assert best <= kl <= best + step


def test_points_that_no_price_takes_are_left_out():
    points = [(10, 5.0, "A"), (20, 4.9, "B"), (30, 1.0, "C"), (40, 1.5, "D"), (50, 0.5, "E")]
    hull = target._hull(target._Point(*point) for point in points)
    assert [point.type for point in hull] == ["A", "C", "E"]


def test_it_diverges_less_than_the_mix_of_the_same_size(tmp_path):
    model = tl.load("demo")
    out, mix = tmp_path / "out.gguf", tmp_path / "mix.gguf"
    found = tl.quantize(model, out, target_bits="Q4_K_S", text=TEXT)
    tl.quantize(model, mix, "Q4_K_S")
    assert os.path.getsize(out) <= os.path.getsize(mix)
    file = tl.GGUF(out)
    assert found.types == {name: file.tensors[name].type for name in found.types}
    assert found.nbytes == sum(file.tensors[name].nbytes for name in found.types)
    assert 0.9 * found.target < found.bits <= found.target
    held_out = target.split_text(model, TEXT)[1]
    assert found.measured.mean == tl.kl(model, tl.load(out), held_out).mean
    ours, theirs = (tl.kl(model, tl.load(path), TEXT).mean for path in (out, mix))
    assert ours < 0.85 * theirs
    text = str(found)
    assert f"{found.bits:.3f} bits per weight" in text
    assert "blk.*.ffn_down.weight" in text
    assert str(found.table("tensor")).count("\n") >= len(found.tensors)
    by_name = {tensor.name: tensor for tensor in found.tensors}
    down = by_name["blk.0.ffn_down.weight"]
    assert down.smaller is None or (down.smaller[1] < down.nbytes and down.smaller[2] > down.kl)
    assert down.larger is None or (down.larger[1] > down.nbytes and down.larger[2] < down.kl)
    with pytest.raises(ValueError, match="by is 'size'"):
        found.table("size")


def test_the_choice_is_the_same_every_time(small, tmp_path):
    for name, threads in (("a", 1), ("b", 2)):
        out = tmp_path / f"{name}.gguf"
        tl.quantize(tl.load(small, threads=threads), out, target_bits=4.3, text=ids())
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_larger_size_diverges_less(small, tmp_path):
    found = [
        tl.quantize(small, tmp_path / "out.gguf", target_bits=bits, text=ids())
        for bits in (2.7, 4.0, 6.0, 12.0)
    ]
    for less, more in itertools.pairwise(found):
        assert less.bits < more.bits
        assert less.estimate > more.estimate
        assert less.measured.mean > more.measured.mean
    assert set(found[0].types.values()) & {"IQ2_S", "IQ2_XS", "IQ2_XXS"}
    assert "F16" in found[-1].types.values()


def test_types_and_an_importance_matrix(small, tmp_path):
    model = tl.load(small)
    matrix = tl.imatrix(model, ids())
    out = tmp_path / "out.gguf"
    fixed = {"blk.*.attn_v.weight": "Q8_0"}
    found = tl.quantize(small, out, target_bits=4.5, text=ids(), imatrix=matrix, types=fixed)
    assert found.types["blk.1.attn_v.weight"] == "Q8_0"
    assert found.bits <= 4.5
    assert tl.GGUF(out).metadata["quantize.imatrix.entries_count"] == len(matrix.sums)
    plain = tl.quantize(small, out, target_bits=4.5, text=ids(), types=fixed)
    assert plain.estimate != found.estimate


def test_the_command(small, tmp_path, capsys):
    text, out = tmp_path / "text.txt", tmp_path / "out.gguf"
    text.write_text(TEXT)
    options = ["--target-bits", "4.5", "--text", str(text)]
    assert main(["quantize", "demo", str(out), *options]) == 0
    printed = capsys.readouterr().out
    assert "blk.*.ffn_down.weight" in printed
    assert "bits per weight" in printed
    assert f"{out}: {os.path.getsize(out):,} bytes" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_bits": 4.5}, "text is missing"),
        ({"text": TEXT}, "without target_bits"),
        ({"target_bits": 1.0, "text": ids()}, r"target_bits is 1\.0.*expected at least 1\.5"),
        ({"target_bits": "Q9", "text": ids()}, "target_bits is 'Q9'; expected a number or one of"),
        ({"target_bits": float("nan"), "text": ids()}, "target_bits is nan"),
        ({"target_bits": -1, "text": ids()}, "target_bits is -1"),
        ({"target_bits": 4.5, "text": ids(9)}, "text has 9 tokens; expected at least 16"),
        ({"target_bits": 4.5, "text": ids(), "types": {"x": "Q8_0"}}, "no tensor has a name"),
    ],
)
def test_wrong_arguments(options, message, small, tmp_path):
    with pytest.raises(ValueError, match=message):
        tl.quantize(small, tmp_path / "out.gguf", **options)
    assert not (tmp_path / "out.gguf").exists()


def test_a_model_without_logits(tmp_path):
    path = tmp_path / "bert.gguf"
    tl.write_gguf(path, *random_architecture("bert", "F16", vocab=64))
    with pytest.raises(ValueError, match="encoder"):
        tl.quantize(path, tmp_path / "out.gguf", target_bits=4.5, text=ids())
