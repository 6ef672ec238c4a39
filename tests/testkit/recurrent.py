"""Models whose blocks have a state: random ones (LFM2, Qwen 3.5), and what their sessions keep."""

import numpy as np


def random_model(
    architecture,
    *,
    layers=4,
    width=40,
    head_size=12,
    heads=4,
    kv_heads=2,
    key_heads=2,
    value_heads=6,
    state_size=20,
    taps=4,
    ffn=72,
    vocab=90,
    seed=0,
):
    """Return a random file as (metadata, tensors), ready for `write_gguf`.

    Every fourth block has attention. Weights are N(0, 1 / fan-in), norm weights 1 + 0.3 N.
    """
    rng = np.random.default_rng(seed)
    tensors = {}

    def matrix(name, rows, columns):
        tensors[f"{name}.weight"] = rng.normal(0, columns**-0.5, (rows, columns))

    def norm(name, size):
        tensors[f"{name}.weight"] = 1 + 0.3 * rng.normal(size=size)

    delta = architecture != "lfm2"
    keys = {
        "block_count": layers,
        "context_length": 2048,
        "embedding_length": width,
        "feed_forward_length": ffn,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head_size,
        "attention.value_length": head_size,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": head_size // 4 * 2 if delta else head_size,
    }
    if delta:
        keys |= {
            "ssm.conv_kernel": taps,
            "ssm.state_size": state_size,
            "ssm.group_count": key_heads,
            "ssm.time_step_rank": value_heads,
            "ssm.inner_size": value_heads * state_size,
        }
    else:
        counts = [kv_heads if (i + 1) % 4 == 0 else 0 for i in range(layers)]
        keys |= {"attention.head_count_kv": np.array(counts, np.int32), "shortconv.l_cache": taps}

    matrix("token_embd", vocab, width)
    norm("output_norm" if delta else "token_embd_norm", width)
    for layer in range(layers):
        b = f"blk.{layer}"
        norm(f"{b}.attn_norm", width)
        norm(f"{b}.post_attention_norm" if delta else f"{b}.ffn_norm", width)
        if (layer + 1) % 4 == 0:
            matrix(f"{b}.attn_q", heads * head_size * (2 if delta else 1), width)
            matrix(f"{b}.attn_k", kv_heads * head_size, width)
            matrix(f"{b}.attn_v", kv_heads * head_size, width)
            matrix(f"{b}.attn_output", width, heads * head_size)
            norm(f"{b}.attn_q_norm", head_size)
            norm(f"{b}.attn_k_norm", head_size)
        elif delta:
            matrix(f"{b}.attn_qkv", (2 * key_heads + value_heads) * state_size, width)
            matrix(f"{b}.attn_gate", value_heads * state_size, width)
            matrix(f"{b}.ssm_conv1d", (2 * key_heads + value_heads) * state_size, taps)
            matrix(f"{b}.ssm_alpha", value_heads, width)
            matrix(f"{b}.ssm_beta", value_heads, width)
            matrix(f"{b}.ssm_out", width, value_heads * state_size)
            norm(f"{b}.ssm_norm", state_size)
            tensors[f"{b}.ssm_a"] = -rng.uniform(0.02, 0.4, value_heads)
            tensors[f"{b}.ssm_dt.bias"] = rng.normal(size=value_heads)
        else:
            matrix(f"{b}.shortconv.in_proj", 3 * width, width)
            matrix(f"{b}.shortconv.conv", width, taps)
            matrix(f"{b}.shortconv.out_proj", width, width)
            if layer == 0:
                tensors[f"{b}.shortconv.conv.bias"] = 0.3 * rng.normal(size=width)
        matrix(f"{b}.ffn_gate", ffn, width)
        matrix(f"{b}.ffn_up", ffn, width)
        matrix(f"{b}.ffn_down", width, ffn)
    metadata = {"general.architecture": architecture}
    metadata |= {f"{architecture}.{key}": value for key, value in keys.items()}
    return metadata, {name: array.astype(np.float32) for name, array in tensors.items()}


def check_sessions(model, ids, path):
    """Compare parts, a rewind, a fork and a saved session of 600 tokens with one call, bit by bit.

    A rewind goes back to a multiple of 256. `path` is a file to write.
    """
    want = model.logits(ids)
    session = model.session()
    for first, end in ((0, 1), (1, 250), (250, 257), (257, 511), (511, 513), (513, 530)):
        assert np.array_equal(session.eval(ids[first:end], "all"), want[first:end])
    fork = session.fork()
    session.rewind(15)
    assert np.array_equal(session.eval(ids[515:560], "all"), want[515:560])
    assert np.array_equal(fork.eval(ids[530:], "all"), want[530:])
    session.save(path)
    again = model.session(path)
    assert np.array_equal(again.eval(ids[560:], "all"), want[560:])
    assert model.memory(560).cache == session.core.nbytes
