"""Four bugs of a well-known beginner's port, each with a test that would have found it.

In order: cos and sin swapped in RoPE; keys read instead of values; the text of a token mapped to
the wrong one of two ids; a newline encoded as a space.
"""

import numpy as np

import tinyllm as tl
from testkit import data, models


def test_rope_turns_pairs_by_the_angle(tmp_path):
    model = models.random_model(tmp_path, "F32", layers=1)
    trace = model.trace(models.random_ids(model, 12), ["blk.0.attn_q", "blk.0.attn_q_rope"])
    # a pair is a complex number, and the rotation multiplies it by exp(i angle)
    pairs = trace["blk.0.attn_q"].astype(np.float64).reshape(12, 4, 32, 2)
    angle = np.arange(12)[:, None] * 10000.0 ** (-np.arange(32) / 32)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angle)[:, None]
    want = np.stack([turned.real, turned.imag], -1).reshape(12, 4, 64)
    assert np.abs(trace["blk.0.attn_q_rope"] - want).max() < 1e-6
    # position 0 is not rotated; with cos and sin swapped this fails
    assert np.array_equal(trace["blk.0.attn_q_rope"][0], trace["blk.0.attn_q"][0])


def test_the_mix_reads_values(tmp_path):
    model = models.random_model(tmp_path, "F32", layers=1, heads=4, kv_heads=2)
    ids = models.random_ids(model, 300)  # more than one block of the cache
    trace = model.trace(ids, "blk.0.*")
    probs = trace["blk.0.attn_probs"].astype(np.float64)

    def mixed(what):
        heads = np.repeat(trace[what].astype(np.float64), 2, axis=1)  # 2 query heads per kv head
        return np.einsum("hts,shd->thd", probs, heads)

    assert np.abs(trace["blk.0.attn_mix"] - mixed("blk.0.attn_v")).max() < 1e-5
    assert np.abs(trace["blk.0.attn_mix"] - mixed("blk.0.attn_k_rope")).max() > 0.1
    # the same through the cache, one token at a time
    session = model.session()
    steps = [session.eval([token]) for token in ids]
    assert np.array_equal(np.stack(steps), model.logits(ids))


def spm(tokens, types):
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.zeros(len(tokens), np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_bos_token": False,
    }


def test_two_ids_with_one_text_stay_two():
    from tinyllm.tokenizer import tokenizer_from_metadata

    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, "a", "!", "a"]
    types = [2, 3, 3, *[6] * 256, 1, 1, 1]
    tokenizer = tokenizer_from_metadata(spm(tokens, types))
    normal = 3 + 256
    as_byte = 3 + ord("a")
    # a byte token and two normal tokens have the same text; encoding uses the first normal one
    assert tokenizer.pieces([as_byte, normal, normal + 2]) == ["a", "a", "a"]
    assert tokenizer.encode("a") == [normal]
    assert tokenizer.id("a") == normal
    assert tokenizer.ids("a") == [as_byte, normal, normal + 2]
    assert tokenizer.decode([as_byte, normal, normal + 2]) == "aaa"


def test_a_newline_is_not_a_space():
    tokenizer = tl.load_tokenizer(data.path("stories260K", "tok512.bin"))
    assert tokenizer.encode("a\nb") != tokenizer.encode("a b")
    assert tokenizer.decode(tokenizer.encode("a\nb\n\n c", add_special=False)) == "a\nb\n\n c"
    demo = tl.load().tokenizer
    assert demo.decode(demo.encode("a\nb", add_special=False)) == "a\nb"
    assert demo.encode("\n") != demo.encode(" ")
