"""Names of other libraries: the table, and what messages make of it."""

import re

import gguf
import pytest

import tinyllm as tl
from testkit import architectures, models
from tinyllm.trace.dialects import TABLE, hint, table_names, translate

SIZES = {"layers": 4, "width": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 60}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.random_model(tmp_path_factory.mktemp("dialects"), biases=True, **SIZES)


@pytest.fixture(scope="module")
def trace(model):
    return model.trace([1, 2, 3])


# What each library calls a value, from its own documentation and sources: the activation names of
# TransformerLens, the modules of LlamaForCausalLM, and the names that llama.cpp's graphs set.
NAMES = {
    "hook_embed": "token_embd",
    "blocks.3.hook_resid_pre": "blk.3.resid_pre",
    "blocks.3.ln1.hook_scale": "blk.3.attn_norm_scale",
    "blocks.3.ln1.hook_normalized": "blk.3.attn_norm",
    "blocks.3.attn.hook_q": "blk.3.attn_q",
    "blocks.3.attn.q.hook_out": "blk.3.attn_q",
    "blocks.3.attn.hook_rot_q": "blk.3.attn_q_rope",
    "blocks.3.attn.hook_rot_k": "blk.3.attn_k_rope",
    "blocks.3.attn.hook_attn_scores": "blk.3.attn_scores",
    "blocks.3.attn.hook_pattern": "blk.3.attn_probs",
    "blocks.3.attn.hook_z": "blk.3.attn_mix",
    "blocks.3.hook_attn_out": "blk.3.attn_output",
    "blocks.3.hook_resid_mid": "blk.3.resid_mid",
    "blocks.3.mlp.hook_pre": "blk.3.ffn_gate",
    "blocks.3.mlp.hook_pre_linear": "blk.3.ffn_up",
    "blocks.3.mlp.hook_post": "blk.3.ffn_act",
    "blocks.3.hook_mlp_out": "blk.3.ffn_down",
    "blocks.3.hook_resid_post": "blk.3.resid_post",
    "ln_final.hook_normalized": "output_norm",
    "unembed.hook_out": "output",
    "model.embed_tokens": "token_embd",
    "model.layers.3": "blk.3.resid_post",
    "model.layers.3.input_layernorm": "blk.3.attn_norm",
    "model.layers.3.self_attn": "blk.3.attn_output",
    "model.layers.3.self_attn.v_proj": "blk.3.attn_v",
    "model.model.layers.3.self_attn.v_proj.output": "blk.3.attn_v",
    "model.language_model.layers.3.mlp.up_proj": "blk.3.ffn_up",
    "layers.3.mlp": "blk.3.ffn_down",
    "model.layers.*.mlp.gate_proj": "blk.*.ffn_gate",
    "model.norm": "output_norm",
    "lm_head": "output",
    "hidden_states[3]": "blk.3.resid_pre",
    "attentions[0]": "blk.0.attn_probs",
    "inp_embd": "token_embd",
    "attn_norm-3": "blk.3.attn_norm",
    "Vcur-3": "blk.3.attn_v",
    "kq-3": "blk.3.attn_scores",
    "kq_soft_max-3": "blk.3.attn_probs",
    "kq_soft_max_ext-3": "blk.3.attn_probs",
    "kqv-3": "blk.3.attn_mix",
    "attn_out-3": "blk.3.attn_output",
    "ffn_inp-3": "blk.3.resid_mid",
    "ffn_swiglu-3": "blk.3.ffn_act",
    "ffn_out-3": "blk.3.ffn_down",
    "l_out-3": "blk.3.resid_post",
    "result_norm": "output_norm",
    "result_output": "output",
}


def test_the_error_says_our_name(model, trace):
    for theirs, ours in NAMES.items():
        for call in (lambda name=theirs: trace[name], lambda name=theirs: model.trace([1], name)):
            with pytest.raises((KeyError, ValueError), match=re.escape(f"{ours!r} here")):
                call()
        with pytest.raises(ValueError, match=re.escape(f"{ours!r} here")):
            model.trace([1], edits=tl.zero(theirs))
        assert ours.replace("*", "0") in {tap.name for tap in model.taps}


def test_names_with_two_meanings(trace):
    for theirs, both in {
        "Qcur-3": ("blk.3.attn_q", "blk.3.attn_q_rope"),
        "Kcur-0": ("blk.0.attn_k", "blk.0.attn_k_rope"),
        "kqv_out-3": ("blk.3.attn_mix", "blk.3.attn_output"),
    }.items():
        with pytest.raises(KeyError, match=re.escape(f"{both[0]!r} or {both[1]!r} here (there ")):
            trace[theirs]
    with pytest.raises(KeyError, match="here \\(there neither scaled nor masked\\)"):
        trace["kq-3"]


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        (("q", 3), "blk.3.attn_q"),
        (("pattern", 0), "blk.0.attn_probs"),
        (("attn", 0), "blk.0.attn_probs"),
        (("resid_post", 2), "blk.2.resid_post"),
        (("attn_out", 2), "blk.2.attn_output"),
        (("pre", 1), "blk.1.ffn_gate"),
        (("normalized", 1, "ln2"), "blk.1.ffn_norm"),
    ],
)
def test_the_short_keys_of_transformer_lens(trace, key, ours):
    with pytest.raises(TypeError, match=re.escape(f"{ours!r} here")):
        trace[key]
    for strange in (("q",), ("q", "3"), ("zzz", 3), (3, "q"), ("q", True), ()):
        with pytest.raises(TypeError, match=r"expected the name of a tap or a slice of tokens$"):
            trace[strange]


def test_weights_say_our_name(model):
    pairs = {
        "model.layers.3.self_attn.q_proj.weight": "blk.3.attn_q.weight",
        "model.layers.3.self_attn.q_proj.bias": "blk.3.attn_q.bias",
        "model.layers.3.self_attn.q_proj": "blk.3.attn_q.weight",
        "layers.3.attention.wo.weight": "blk.3.attn_output.weight",
        "layers.3.feed_forward.w3.weight": "blk.3.ffn_up.weight",
        "blocks.3.attn.W_Q": "blk.3.attn_q.weight",
        "blocks.3.attn.b_Q": "blk.3.attn_q.bias",
        "blocks.3.mlp.W_in": "blk.3.ffn_up.weight",
        "unembed.W_U": "output.weight",
        "lm_head.weight": "output.weight",
    }
    for theirs, ours in pairs.items():
        with pytest.raises(KeyError, match=re.escape(f"{ours!r} here")):
            model.weights[theirs]
        assert ours in model.weights
    tied = tl.load()
    assert "output.weight" not in tied.weights
    with pytest.raises(KeyError, match=r"'token_embd.weight' here \(shared with the embedding"):
        tied.weights["lm_head.weight"]


#: Values after a step that has no weight of its own. In some models, a module's output is one.
WEIGHTLESS = ("embd_scaled", "output_uncapped", "output_unscaled")


@pytest.mark.parametrize("ours", [row.ours for row in TABLE if row.ours not in WEIGHTLESS])
def test_our_weights_agree_with_those_of_gguf(ours):
    """PyPI gguf has a table of the names of parameters, which its converters use."""
    kinds = ("LLAMA", "GEMMA2", "GPT2", "QWEN3MOE", "PHI3")
    maps = [gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, kind), 4) for kind in kinds]
    row = next(row for row in TABLE if row.ours == ours)
    for name in f"{row.hugging_face} {row.meta}".split():
        module = name.replace("{i}", "3")
        prefix = "transformer." if module.startswith(("h.", "w", "ln_f")) else "model."
        spellings = (module, prefix + module)
        theirs = {each.get_name(spelling) for each in maps for spelling in spellings} - {None}
        assert not theirs or ours.replace("{i}", "3") in theirs, name


def test_names_mean_what_the_architecture_makes_of_them(tmp_path):
    """The same module is something else in another architecture."""
    meanings = {
        "gemma2": {
            "model.layers.1.post_attention_layernorm": "blk.1.post_attention_norm",
            "model.layers.1.pre_feedforward_layernorm": "blk.1.ffn_norm",
            "model.layers.1.self_attn": "blk.1.attn_output",
            "blocks.1.hook_attn_out": "blk.1.post_attention_norm",
            "blocks.1.hook_mlp_out": "blk.1.post_ffw_norm",
            "blocks.1.mlp.hook_pre": "blk.1.ffn_gate",
        },
        "gpt2": {
            "transformer.wpe": "position_embd",
            "transformer.h.1": "blk.1.resid_post",
            "transformer.h.1.ln_2": "blk.1.ffn_norm",
            "transformer.h.1.mlp.c_fc": "blk.1.ffn_up",
            "blocks.1.mlp.hook_pre": "blk.1.ffn_up",
            "blocks.1.hook_mlp_out": "blk.1.ffn_down",
            "transformer.ln_f": "output_norm",
        },
        "qwen3moe": {
            "model.layers.1.mlp": "blk.1.ffn_moe",
            "model.layers.1.mlp.gate": "blk.1.ffn_gate_inp",
            "blocks.1.hook_mlp_out": "blk.1.ffn_moe",
            "model.layers.1.self_attn.q_norm": "blk.1.attn_q_norm",
            "model.layers.1.post_attention_layernorm": "blk.1.ffn_norm",
        },
    }
    for architecture, names in meanings.items():
        made = architectures.random_architecture(architecture)
        tl.write_gguf(tmp_path / f"{architecture}.gguf", *made)
        model = tl.load(tmp_path / f"{architecture}.gguf")
        taps = [tap.name for tap in model.taps]
        for theirs, ours in names.items():
            assert [each.ours for each in translate(theirs, taps)] == [ours], theirs
    weights = tl.load(tmp_path / "gpt2.gguf").weights
    with pytest.raises(KeyError, match=r"'blk\.1\.attn_qkv\.weight' here"):
        weights["transformer.h.1.attn.c_attn.weight"]


def test_blocks_and_suffixes(model, trace):
    blocks = "expected one of the blocks 0 to 3"
    for name in ("blk.4.attn_q", "blk.-1.attn_q"):
        with pytest.raises(KeyError, match=f"no tap matches '{name}'; {blocks}"):
            trace[name]
        with pytest.raises(ValueError, match=blocks):
            model.trace([1], name)
        with pytest.raises(KeyError, match=f"{blocks}"):
            model.weights[f"{name}.weight"]
        with pytest.raises(KeyError, match=f"{blocks}"):
            model.weights[name]
    for name in ("blocks.4.hook_resid_post", "model.layers.7.mlp", "l_out-4"):
        with pytest.raises(KeyError, match=f"would be 'blk.*{blocks}"):
            trace[name]
    with pytest.raises(KeyError, match=r"expected 'blk\.0\.attn_q\.weight'"):
        model.weights["blk.0.attn_q"]
    for name in ("blk.0.attn_q.weight", "blk.0.attn_q.bias"):
        with pytest.raises(KeyError, match=r"it is a weight.*The tap is 'blk\.0\.attn_q'"):
            trace[name]
    with pytest.raises(KeyError, match=r"it is a weight.*'blk\.3\.attn_q' here"):
        trace["model.layers.3.self_attn.q_proj.weight"]
    some = {"blk.1.ssm_in", "blk.3.ssm_in", "blk.0.attn_q"}
    assert hint("blk.2.ssm_in", some) == "expected one of the blocks 1, 3"


def test_what_was_not_captured_is_told_apart(model, trace, tmp_path):
    trace.save(tmp_path / "t.npz")
    for name in ("blk.0.attn_probs", "blocks.0.attn.hook_pattern"):
        with pytest.raises(KeyError, match="was not captured; run again with it in capture="):
            trace[name]
        with pytest.raises(KeyError, match="was not captured; the file does not have it"):
            tl.read(tmp_path / "t.npz")[name]
    with pytest.raises(KeyError, match="no tap matches 'zzz'; the taps are token_embd"):
        tl.read(tmp_path / "t.npz")["zzz"]


def test_nothing_is_said_where_nothing_is_known():
    taps = table_names(2)
    for name in ("x", "blocks.x.hook_q", "layers", "", "-3", "model.", 5, None, ("a", 1), "norm-1"):
        assert translate(name, taps) == []
        assert hint(name, taps) == ""
    assert len({row.ours for row in TABLE}) == len(TABLE)


def test_weights_are_a_mapping(model):
    weights = model.weights
    assert list(weights) == [weight.name for weight in weights.values()]
    assert len(weights) == len(list(weights))
    assert weights.get("zzz") is None
    assert repr(weights).startswith(f"<tinyllm.Weights: {len(weights)} tensors, ")
    with pytest.raises(KeyError):
        weights[0]
    with pytest.raises(TypeError):
        weights["a"] = 1
