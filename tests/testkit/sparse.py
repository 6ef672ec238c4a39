"""Checkpoints of many gigabytes that take little room on disk."""

import json
import struct

import numpy as np


def checkpoint(folder, layers, width, inner, vocab=512, shards=1, written=4096):
    """Write a Llama of BF16 tensors as safetensors.

    The first values of each tensor are random. The rest are zeros, for which the file system keeps
    no blocks.
    """
    shapes = {
        "model.embed_tokens": (vocab, width),
        "model.norm": (width,),
        "lm_head": (vocab, width),
    }
    for i in range(layers):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.self_attn.{name}_proj": (width, width) for name in "qkvo"}
        shapes |= {f"{layer}.mlp.{name}_proj": (inner, width) for name in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj"] = (width, inner)
        norms = ("input_layernorm", "post_attention_layernorm")
        shapes |= {f"{layer}.{name}": (width,) for name in norms}
    rng = np.random.default_rng(0)
    names = [f"{name}.weight" for name in shapes]
    total, places = 0, {}
    for number in range(shards):
        file_name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        header, offset = {}, 0
        for name in names[number::shards]:
            shape = shapes[name.removesuffix(".weight")]
            end = offset + 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
            places[name] = file_name
            offset = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file_name, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + offset)
            for entry in header.values():
                file.seek(8 + len(text) + entry["data_offsets"][0])
                size = min(written, int(np.prod(entry["shape"])))
                values = rng.standard_normal(size).astype(np.float32)
                file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())
        total += offset
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": width // 64,
        "intermediate_size": inner,
        "max_position_embeddings": 64,
        "vocab_size": vocab,
        "rms_norm_eps": 1e-5,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return total
