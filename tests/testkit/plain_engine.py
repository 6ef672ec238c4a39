"""An engine for llama files as an outsider writes it: NumPy, the GGUF reader of PyPI, plain loops.

It shares no code with tinyllm. `bugs` are mistakes that people make, each at the place where they
make it.
"""

import gguf
import numpy as np


class Engine:
    """A llama model from a GGUF file. `run` returns every value, `generate` the best ids."""

    def __init__(self, path, bugs=()):
        reader = gguf.GGUFReader(path)
        self.bugs = set(bugs)
        self.weights = {}
        for tensor in reader.tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            self.weights[tensor.name] = np.asarray(values, np.float32)

        def key(name, default=None):
            field = reader.fields.get(f"llama.{name}")
            return default if field is None else field.parts[field.data[0]][0].item()

        self.layers = int(key("block_count"))
        self.heads = int(key("attention.head_count"))
        self.kv_heads = int(key("attention.head_count_kv", self.heads))
        self.size = int(key("embedding_length")) // self.heads
        self.epsilon = key("attention.layer_norm_rms_epsilon")
        self.base = key("rope.freq_base", 10000.0)
        if "base_hard_coded" in self.bugs:
            self.base = 500000.0

    def norm(self, x, name):
        y = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.epsilon)
        return y if "norm_without_weight" in self.bugs else y * self.weights[f"{name}.weight"]

    def linear(self, x, name):
        weight = self.weights[f"{name}.weight"]
        if "weights_in_file_order" in self.bugs and "attn_output" in name:
            weight = weight.reshape(weight.shape[::-1]).T
        return x @ weight.T

    def rope(self, x):
        """Rotate pairs of values of each head, (T, heads, size)."""
        y = x.copy()
        for j in range(self.size // 2):
            angle = np.arange(len(x))[:, None] * self.base ** (-2.0 * j / self.size)
            cos, sin = np.cos(angle), np.sin(angle)
            if "cos_sin_swapped" in self.bugs:
                cos, sin = sin, cos
            a, b = 2 * j, 2 * j + 1
            if "rope_halves" in self.bugs:
                a, b = j, j + self.size // 2
            y[:, :, a] = x[:, :, a] * cos - x[:, :, b] * sin
            y[:, :, b] = x[:, :, a] * sin + x[:, :, b] * cos
        return y

    def attention(self, q, k, v):
        """Return scores, probabilities and the mix of all heads."""
        t = len(q)
        scores = np.full((self.heads, t, t), -np.inf, np.float32)
        probs = np.zeros((self.heads, t, t), np.float32)
        mix = np.zeros((t, self.heads, self.size), np.float32)
        seen = np.tril(np.ones((t, t), bool), k=1 if "mask_sees_next" in self.bugs else 0)
        for h in range(self.heads):
            kv = h // (self.heads // self.kv_heads)
            if "kv_head_modulo" in self.bugs:
                kv = h % self.kv_heads
            s = q[:, h] @ k[:, kv].T
            if "no_scale" not in self.bugs:
                s = s / np.sqrt(self.size)
            scores[h] = np.where(seen, s, -np.inf)
            e = np.exp(scores[h] - scores[h].max(axis=1, keepdims=True))
            probs[h] = e / e.sum(axis=1, keepdims=True)
            cache = k if "keys_as_values" in self.bugs else v
            mix[:, h] = probs[h] @ cache[:, kv]
        return scores, probs, mix

    def run(self, ids):
        """Return every value of a run by its name. (T,) -> {name: array}."""
        t = len(ids)
        out = {"token_embd": self.weights["token_embd.weight"][np.asarray(ids)]}
        x = out["token_embd"]
        for i in range(self.layers):
            at = f"blk.{i}."
            out[at + "resid_pre"] = x
            n = out[at + "attn_norm"] = self.norm(x, at + "attn_norm")
            q = out[at + "attn_q"] = self.linear(n, at + "attn_q").reshape(t, self.heads, -1)
            k = out[at + "attn_k"] = self.linear(n, at + "attn_k").reshape(t, self.kv_heads, -1)
            v = out[at + "attn_v"] = self.linear(n, at + "attn_v").reshape(t, self.kv_heads, -1)
            q, k = self.rope(q), self.rope(k)
            out[at + "attn_q_rope"], out[at + "attn_k_rope"] = q, k
            scores, probs, mix = self.attention(q, k, v)
            out[at + "attn_scores"], out[at + "attn_probs"] = scores, probs
            out[at + "attn_mix"] = mix
            y = out[at + "attn_output"] = self.linear(mix.reshape(t, -1), at + "attn_output")
            x = out[at + "resid_mid"] = x + y
            n = out[at + "ffn_norm"] = self.norm(x, at + "ffn_norm")
            gate = out[at + "ffn_gate"] = self.linear(n, at + "ffn_gate")
            up = out[at + "ffn_up"] = self.linear(n, at + "ffn_up")
            if "gate_up_swapped" in self.bugs:
                gate, up = up, gate
            hidden = out[at + "ffn_act"] = gate / (1 + np.exp(-gate)) * up
            y = out[at + "ffn_down"] = self.linear(hidden, at + "ffn_down")
            if "residual_forgotten" in self.bugs:
                x = np.zeros_like(x)
            x = out[at + "resid_post"] = x + y
        x = out["output_norm"] = self.norm(x, "output_norm")
        head = self.weights.get("output.weight", self.weights["token_embd.weight"])
        out["output"] = x @ head.T
        return {name: value.astype(np.float32) for name, value in out.items()}

    def generate(self, ids, count):
        """Return the ids of the largest logits, one after another."""
        ids = list(ids)
        for _ in range(count):
            ids.append(int(self.run(ids)["output"][-1].argmax()))
        return ids[-count:]


#: The bugs of `Engine`, and the doctor's names.
BUGS = {
    "rope_halves": "rope_pairing",
    "cos_sin_swapped": "rope_cos_sin_swapped",
    "base_hard_coded": "rope_base",
    "keys_as_values": "keys_as_values",
    "kv_head_modulo": "kv_head_modulo",
    "no_scale": "attention_scale_missing",
    "mask_sees_next": "causal_mask_off_by_one",
    "norm_without_weight": "norm_weight_missing",
    "weights_in_file_order": "weight_dimension_order",
    "gate_up_swapped": "gate_up_swapped",
    "residual_forgotten": "residual_missing",
}
