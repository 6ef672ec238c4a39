"""Train the demo model of tinyllm and write it as GGUF.

A small Llama with a byte-level BPE of its own, trained on one plain text. Needs PyTorch::

    pip install torch==2.13.0 numpy .
    python scripts/train_demo.py tinyshakespeare.txt --run run --output tinyllm/data/demo.gguf

The best weights so far are kept in ``run/best.npz`` (names as in GGUF) beside ``run/log.txt``;
``--export-only`` writes the GGUF file from them without training. docs/demo-model.md tells how
the shipped file was made.

The model's parts: RMS norm (Zhang & Sennrich 2019), interleaved RoPE (Su et al. 2021),
grouped-query attention (Ainslie et al. 2023), SwiGLU (Shazeer 2020), tied embeddings. The
optimizer is AdamW (Loshchilov & Hutter 2019). The tokenizer is GPT-2's byte-level BPE
(Radford et al. 2019; Sennrich et al. 2016).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

WIDTH, LAYERS, HEADS, KV_HEADS, HEAD_SIZE, FFN_WIDTH = 256, 4, 4, 2, 64, 768
CONTEXT, VOCAB = 512, 1024
NORM_EPSILON, ROPE_BASE = 1e-5, 10000.0
END = "<|endoftext|>"


# --- tokenizer -------------------------------------------------------------------------------

# GPT-2's pre-tokenizer. For ASCII text, which is checked, \p{L} and \p{N} are these ranges.
WORD = re.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII
)


def byte_characters() -> list[str]:
    """Return the printable character by which GPT-2's vocabulary writes each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    substitutes = iter(range(0x100, 0x200))
    return [chr(b if b in printable else next(substitutes)) for b in range(256)]


class Tokenizer:
    """A byte-level BPE: the pieces by id, and the merges in order of rank."""

    def __init__(self, merges: list[tuple[str, str]]) -> None:
        self.merges = merges
        self.characters = byte_characters()
        # GPT-2's order: the bytes that stand for themselves, the substitutes, the merges.
        self.pieces = [*sorted(self.characters), *(a + b for a, b in merges), END]
        self.ids = {piece: i for i, piece in enumerate(self.pieces)}
        self.ranks = {pair: i for i, pair in enumerate(merges)}
        self.end = self.ids[END]
        self.cache: dict[str, list[int]] = {}

    @classmethod
    def train(cls, text: str, size: int) -> Tokenizer:
        """Merge the most frequent pair, in a tie the first by text, up to `size` tokens."""
        characters = byte_characters()
        counts = Counter(WORD.findall(text))
        words = [[characters[b] for b in word.encode()] for word in counts]
        weights = list(counts.values())
        pairs: Counter[tuple[str, str]] = Counter()
        where: defaultdict[tuple[str, str], set[int]] = defaultdict(set)

        def add(index: int, sign: int) -> None:
            word = words[index]
            for pair in itertools.pairwise(word):
                pairs[pair] += sign * weights[index]
                where[pair].add(index)

        for index in range(len(words)):
            add(index, 1)
        merges: list[tuple[str, str]] = []
        while len(merges) < size - 256 - 1:
            best = min(pairs, key=lambda pair: (-pairs[pair], pair))
            if pairs[best] < 2:
                raise ValueError(f"the text is too short for {size} tokens")
            merges.append(best)
            for index in where.pop(best):
                add(index, -1)
                words[index] = merge(words[index], best)
                add(index, 1)
            del pairs[best]
        return cls(merges)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens."""
        ids: list[int] = []
        for word in WORD.findall(text):
            if word not in self.cache:
                symbols = [self.characters[b] for b in word.encode()]
                while len(symbols) > 1:
                    pair = min(
                        itertools.pairwise(symbols),
                        key=lambda pair: self.ranks.get(pair, len(self.ranks)),
                    )
                    if pair not in self.ranks:
                        break
                    symbols = merge(symbols, pair)
                self.cache[word] = [self.ids[symbol] for symbol in symbols]
            ids += self.cache[word]
        return ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of some ids; special tokens have none."""
        byte = {character: b for b, character in enumerate(self.characters)}
        text = "".join(self.pieces[i] for i in ids if i != self.end)
        return bytes(byte[character] for character in text).decode("utf-8", errors="replace")


def merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every occurrence of a pair, from left to right."""
    out: list[str] = []
    i = 0
    while i < len(symbols):
        if tuple(symbols[i : i + 2]) == pair:
            out.append(symbols[i] + symbols[i + 1])
            i += 2
        else:
            out.append(symbols[i])
            i += 1
    return out


# --- training --------------------------------------------------------------------------------


def build_model(dropout: float):
    """Return the network; the keys of its state dict are GGUF's tensor names."""
    import torch
    from torch import nn
    from torch.nn import functional

    def linear(inputs: int, outputs: int, scale: float = 1.0) -> nn.Linear:
        layer = nn.Linear(inputs, outputs, bias=False)
        nn.init.normal_(layer.weight, std=scale * inputs**-0.5)
        return layer

    angles = torch.outer(
        torch.arange(CONTEXT, dtype=torch.float64),
        ROPE_BASE ** (-torch.arange(0, HEAD_SIZE, 2, dtype=torch.float64) / HEAD_SIZE),
    )

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            branch = (2 * LAYERS) ** -0.5  # as in GPT-2: branches of deeper networks start smaller
            self.attn_norm = nn.RMSNorm(WIDTH, eps=NORM_EPSILON)
            self.attn_q = linear(WIDTH, HEADS * HEAD_SIZE)
            self.attn_k = linear(WIDTH, KV_HEADS * HEAD_SIZE)
            self.attn_v = linear(WIDTH, KV_HEADS * HEAD_SIZE)
            self.attn_output = linear(HEADS * HEAD_SIZE, WIDTH, branch)
            self.ffn_norm = nn.RMSNorm(WIDTH, eps=NORM_EPSILON)
            self.ffn_gate = linear(WIDTH, FFN_WIDTH)
            self.ffn_up = linear(WIDTH, FFN_WIDTH)
            self.ffn_down = linear(FFN_WIDTH, WIDTH, branch)

        def forward(self, x, cos, sin):
            batch, length, _ = x.shape

            def rotate(v):
                even, odd = v[..., 0::2], v[..., 1::2]
                return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)

            def heads(v, count):
                return v.view(batch, length, count, HEAD_SIZE).transpose(1, 2)

            n = self.attn_norm(x)
            v = heads(self.attn_v(n), KV_HEADS)
            q = rotate(heads(self.attn_q(n), HEADS).float()).to(v.dtype)
            k = rotate(heads(self.attn_k(n), KV_HEADS).float()).to(v.dtype)
            k, v = (t.repeat_interleave(HEADS // KV_HEADS, dim=1) for t in (k, v))
            mix = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            mix = mix.transpose(1, 2).reshape(batch, length, HEADS * HEAD_SIZE)
            x = x + functional.dropout(self.attn_output(mix), dropout, self.training)
            n = self.ffn_norm(x)
            act = functional.silu(self.ffn_gate(n)) * self.ffn_up(n)
            return x + functional.dropout(self.ffn_down(act), dropout, self.training)

    class Llama(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token_embd = nn.Embedding(VOCAB, WIDTH)
            nn.init.normal_(self.token_embd.weight, std=WIDTH**-0.5)
            self.blk = nn.ModuleList(Block() for _ in range(LAYERS))
            self.output_norm = nn.RMSNorm(WIDTH, eps=NORM_EPSILON)
            self.register_buffer("cos", angles.cos().float(), persistent=False)
            self.register_buffer("sin", angles.sin().float(), persistent=False)

        def forward(self, ids):
            cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
            x = functional.dropout(self.token_embd(ids), dropout, self.training)
            for block in self.blk:
                x = block(x, cos, sin)
            return functional.linear(self.output_norm(x), self.token_embd.weight)

    return Llama()


def split(text: str) -> int:
    """Return where the held-out part starts: the last speech that begins within 90 %."""
    return text.rindex("\n\n", 0, len(text) * 9 // 10) + 2


def validation_windows(ids: np.ndarray, end: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cut the ids into windows; each is read after an end-of-text token, with no other context."""
    return [
        (np.concatenate(([end], window[:-1])), window)
        for window in (ids[i : i + CONTEXT] for i in range(0, len(ids), CONTEXT))
    ]


def measure(model, windows: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the mean cross-entropy per token in nats, in float32."""
    import torch
    from torch.nn import functional

    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for inputs, targets in windows:
            logits = model(torch.from_numpy(inputs)[None])[0]
            total += functional.cross_entropy(
                logits, torch.from_numpy(targets), reduction="sum"
            ).item()
            count += len(targets)
    model.train()
    return total / count


def sample(model, tokenizer: Tokenizer, prompt: str, count: int) -> str:
    """Return a continuation at temperature 0.8 among the 40 likeliest tokens."""
    import torch

    generator = torch.Generator().manual_seed(7)
    ids = [tokenizer.end, *tokenizer.encode(prompt)]
    model.eval()
    with torch.no_grad():
        for _ in range(count):
            logits, best = model(torch.tensor([ids[-CONTEXT:]]))[0, -1].topk(40)
            choice = torch.multinomial((logits / 0.8).softmax(-1), 1, generator=generator)
            ids.append(best[choice].item())
    model.train()
    return tokenizer.decode(ids)


def train(text: str, run: Path, options: argparse.Namespace) -> None:
    """Train the tokenizer and the model on the first 90 % of the text; keep the best weights."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    run.mkdir(parents=True, exist_ok=True)
    log_file = (run / "log.txt").open("w", encoding="utf-8")

    def log(message: str) -> None:
        print(message, flush=True)
        print(message, file=log_file, flush=True)

    cut = split(text)
    tokenizer = Tokenizer.train(text[:cut], VOCAB)
    (run / "merges.json").write_text(json.dumps(tokenizer.merges), encoding="utf-8")
    ids = np.array(tokenizer.encode(text[:cut]), dtype=np.int64)
    held_out = text[cut:]
    held_out_ids = np.array(tokenizer.encode(held_out), dtype=np.int64)
    windows = validation_windows(held_out_ids, tokenizer.end)
    token_bytes = len(held_out.encode()) / len(held_out_ids)
    log(
        f"{len(ids)} tokens to train on, {len(held_out_ids)} held out; {token_bytes:.3f} bytes each"
    )

    model = build_model(options.dropout)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    log(f"{sum(p.numel() for p in model.parameters())} parameters; {vars(options)}")
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": options.weight_decay},
            {"params": norms, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
    )

    started = time.monotonic()
    best, worse = math.inf, 0
    recent: list[float] = []
    for step in range(options.steps + 1):
        minutes = (time.monotonic() - started) / 60
        progress = max(step / options.steps, minutes / options.minutes)
        last = progress >= 1
        if step % options.check_every == 0 or last:
            loss = measure(model, windows)
            train_loss = float(np.mean(recent)) if recent else math.nan
            recent = []
            log(
                f"step {step}, {minutes:.1f} min: training {train_loss:.4f} (with dropout), "
                f"held out {loss:.4f} nats per token, "
                f"{loss / math.log(2) / token_bytes:.4f} bits per byte"
            )
            if loss < best:
                best, worse = loss, 0
                weights = {name: p.detach().numpy() for name, p in model.state_dict().items()}
                np.savez(run / "best.tmp.npz", **weights)
                (run / "best.tmp.npz").rename(run / "best.npz")
                facts = {
                    "step": step,
                    "minutes": round(minutes, 1),
                    "training_tokens": len(ids),
                    "held_out_tokens": len(held_out_ids),
                    "held_out_bytes": len(held_out.encode()),
                }
                (run / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
            else:
                worse += 1
            if step % (5 * options.check_every) == 0 or last:
                log(sample(model, tokenizer, "ROMEO:\n", 120) + "\n")
            if last or worse == options.patience:
                break
        warm_up = min(1.0, (step + 1) / 100)
        rate = options.rate * warm_up * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = rng.integers(0, len(ids) - CONTEXT + 1, options.batch)
        targets = torch.from_numpy(np.stack([ids[i : i + CONTEXT] for i in starts]))
        # Every window begins with end-of-text, so the model learns to start from it.
        inputs = torch.cat((torch.full((options.batch, 1), tokenizer.end), targets[:, :-1]), dim=1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(inputs)
        loss = functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.item())


# --- export ----------------------------------------------------------------------------------


def quantize_q8_0(matrix: np.ndarray) -> np.ndarray:
    """Return rows of Q8_0 blocks: 32 values are one float16 scale d and 32 int8, value = d * q.

    (out, in) float32 -> (out, in / 32 * 34) uint8. The layout is block_q8_0 of ggml-common.h; the
    integers are rounded against the scale as stored, half to even.
    """
    blocks = matrix.reshape(-1, 32)
    d = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype("<f2")
    scale = d.astype(np.float32)
    q = np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale != 0)
    q = np.clip(np.rint(q), -127, 127).astype(np.int8)
    return np.hstack([d.view(np.uint8), q.view(np.uint8)]).reshape(len(matrix), -1)


def dequantize_q8_0(raw: np.ndarray) -> np.ndarray:
    """Return the float32 matrix that rows of Q8_0 blocks stand for."""
    blocks = raw.reshape(-1, 34)
    d = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    return (d * blocks[:, 2:].view(np.int8)).reshape(len(raw), -1)


def describe(text: str, run: Path, tokenizer: Tokenizer, weights: dict[str, np.ndarray]) -> dict:
    """Measure the weights on the held-out text and return the metadata of the file."""
    import torch

    model = build_model(dropout=0.0)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    held_out = text[split(text) :]
    ids = np.array(tokenizer.encode(held_out), dtype=np.int64)
    nats = measure(model, validation_windows(ids, tokenizer.end))
    bits = nats * len(ids) / math.log(2) / len(held_out.encode())
    facts = json.loads((run / "facts.json").read_text(encoding="utf-8"))
    description = (
        f"A small Llama that writes in the manner of Shakespeare's plays, for demonstrations. "
        f"Trained on the first 90 % of tinyshakespeare ({facts['training_tokens']} tokens, "
        f"{facts['step']} steps); loss on the held-out last 10 %, of these Q8_0 weights, windows "
        f"of {CONTEXT} tokens: {nats:.4f} nats per token, {bits:.4f} bits per byte. The checkpoint "
        f"was chosen by this loss."
    )
    print(description)
    print(sample(model, tokenizer, "ROMEO:\n", 200))
    return {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "tinyllm demo",
        "general.basename": "tinyllm-demo",
        "general.size_label": "3.4M",
        "general.description": description,
        "general.author": "The tinyllm authors",
        "general.license": "mit",
        "general.license.name": "MIT for the weights; the text is in the public domain",
        "general.languages": ["en"],
        "general.dataset.count": 1,
        "general.dataset.0.name": "tinyshakespeare",
        "general.dataset.0.repo_url": "https://github.com/karpathy/char-rnn",
        "general.file_type": 7,  # mostly Q8_0
        "general.quantization_version": 2,
        "llama.block_count": LAYERS,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": FFN_WIDTH,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.key_length": HEAD_SIZE,
        "llama.attention.value_length": HEAD_SIZE,
        "llama.attention.layer_norm_rms_epsilon": NORM_EPSILON,
        "llama.rope.dimension_count": HEAD_SIZE,
        "llama.rope.freq_base": ROPE_BASE,
        "llama.vocab_size": VOCAB,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokenizer.pieces,
        # 1 is an ordinary token, 3 a control token
        "tokenizer.ggml.token_type": np.array([1] * (VOCAB - 1) + [3], dtype=np.int32),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in tokenizer.merges],
        "tokenizer.ggml.bos_token_id": tokenizer.end,
        "tokenizer.ggml.eos_token_id": tokenizer.end,
        "tokenizer.ggml.add_bos_token": True,
    }


def export(text: str, run: Path, output: Path) -> None:
    """Write the best weights of a run as GGUF: matrices in Q8_0, norms in F32."""
    import tinyllm

    merges = json.loads((run / "merges.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer([(a, b) for a, b in merges])
    tensors, exact = {}, {}
    with np.load(run / "best.npz") as best:
        for name, array in best.items():
            if array.ndim == 2:
                raw = quantize_q8_0(array)
                tensors[name] = tinyllm.Weight(name, array.shape, "Q8_0", raw.tobytes())
                exact[name] = dequantize_q8_0(raw)
            else:
                tensors[name] = exact[name] = array
    metadata = describe(text, run, tokenizer, exact)
    output.parent.mkdir(parents=True, exist_ok=True)
    tinyllm.write_gguf(output, metadata, tensors)
    print(f"{output}: {output.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("text", type=Path, help="the text, ASCII")
    parser.add_argument("--run", type=Path, default=Path("run"), help="folder of log and weights")
    parser.add_argument("--output", type=Path, default=Path("tinyllm/data/demo.gguf"))
    parser.add_argument("--export-only", action="store_true", help="write the GGUF file only")
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--minutes", type=float, default=math.inf, help="train no longer than this")
    parser.add_argument("--batch", type=int, default=8, help=f"windows of {CONTEXT} tokens")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--dropout", type=float, default=0.25)
    parser.add_argument("--weight-decay", type=float, default=1.0)
    parser.add_argument("--patience", type=int, default=6, help="checks without a better loss")
    parser.add_argument("--check-every", type=int, default=100, help="steps between checks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    text = options.text.read_text(encoding="ascii")
    if not options.export_only:
        train(text, options.run, options)
    export(text, options.run, options.output)


if __name__ == "__main__":
    main()
