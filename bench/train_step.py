"""Compare the time and memory of a training step with PyTorch's.

    python bench/train_step.py
    python bench/train_step.py --shape nanogpt --threads 1 --rounds 20

Both train the same network on the same batches with AdamW: a llama (RoPE, gated network) or a gpt2
(learned positions). PyTorch runs its fused attention and its fused AdamW, with and without
torch.compile, in float32; `--bfloat16` adds its mixed precision, whose products are less exact. It
needs PyTorch, and a C++ compiler for torch.compile.

Each engine is a process. They take turns, and a ratio is the median over the rounds.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

#: Width, layers, heads, tokens of a window, windows of a batch, tokens of the vocabulary.
SHAPES = {"diary": (80, 4, 4, 80, 32, 25), "nanogpt": (128, 4, 4, 64, 12, 65)}

ENGINES = ("tinyllm", "torch", "compiled", "bfloat16")


def batches(shape, count=50):
    """Return batches of ids of a text that can be learnt, (count, B, T + 1)."""
    _, _, _, context, batch, vocab = SHAPES[shape]
    steps = np.random.default_rng(0).integers(0, 3, (count, batch, context + 1))
    return (steps.cumsum(axis=2) % vocab).astype(np.int32)


def tinyllm_step(shape, kind, threads):
    """Return a function that makes step i and returns the loss."""
    from tinyllm.training.initial import initial_parts
    from tinyllm.training.network import Network
    from tinyllm.training.optimizer import Optimizer
    from tinyllm.training.settings import Settings

    width, layers, heads, context, batch, vocab = SHAPES[shape]
    settings = Settings.make(
        layers=layers,
        width=width,
        heads=heads,
        context=context,
        batch=batch,
        steps=1_000_000,
        positions="rope" if kind == "llama" else "learned",
        optimizer="adamw",
    )
    parts = initial_parts(settings, {}, vocab)
    network = Network.make(parts.keys, parts.arrays(), threads)
    optimizer = Optimizer(network, settings)
    data = batches(shape)

    def step(i):
        network.flat[:] = 0
        sums = 0.0
        for first in range(0, batch, settings.micro_batch):
            ids = data[i % len(data)][first : first + settings.micro_batch]
            sums += network.add_gradients(
                np.ascontiguousarray(ids[:, :-1]),
                np.ascontiguousarray(ids[:, 1:]),
                1 / (batch * context),
            )
        optimizer.step(i)
        return sums / (batch * context)

    return step


def torch_step(shape, kind, threads, engine):
    """Return a function that makes step i."""
    import torch
    from torch import nn
    from torch.nn import functional

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    width, layers, heads, context, batch, vocab = SHAPES[shape]
    llama = kind == "llama"
    size, hidden = width // heads, -(-8 * width // 24) * 8 if llama else 4 * width
    angles = torch.outer(torch.arange(context), 500.0 ** (-torch.arange(0, size, 2) / size))
    cos, sin = angles.cos(), angles.sin()

    def linear(rows, columns):
        return nn.Linear(rows, columns, bias=not llama)

    def norm():
        return nn.RMSNorm(width, eps=1e-5) if llama else nn.LayerNorm(width)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = norm(), norm()
            self.qkv, self.out = linear(width, 3 * width), linear(width, width)
            self.up = linear(width, 2 * hidden if llama else hidden)
            self.down = linear(hidden, width)

        def forward(self, x):
            parts = self.qkv(self.norm1(x)).view(batch, context, 3, heads, size)
            q, k, v = parts.permute(2, 0, 3, 1, 4)
            if llama:
                q, k = turn(q), turn(k)
            mix = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mix.transpose(1, 2).reshape(batch, context, width))
            up = self.up(self.norm2(x))
            if llama:
                gate, up = up.chunk(2, dim=-1)
                return x + self.down(functional.silu(gate) * up)
            return x + self.down(functional.gelu(up, approximate="tanh"))

    def turn(x):
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(vocab, width)
            self.positions = None if llama else nn.Embedding(context, width)
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.norm, self.head = norm(), nn.Linear(width, vocab, bias=False)

        def forward(self, ids, targets):
            x = self.tokens(ids)
            if not llama:
                x = x + self.positions.weight
            for block in self.blocks:
                x = block(x)
            logits = self.head(self.norm(x)).float()
            return functional.cross_entropy(logits.view(-1, vocab), targets.reshape(-1))

    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, betas=(0.9, 0.99), fused=True)
    run = net if engine == "torch" else torch.compile(net)
    data = torch.from_numpy(batches(shape).astype(np.int64))

    def step(i):
        ids = data[i % len(data)]
        with torch.autocast("cpu", torch.bfloat16, enabled=engine == "bfloat16"):
            loss = run(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def serve(engine, shape, kind, threads):
    """Make as many steps as each line of the input says, and answer with the time and the loss."""
    if engine == "tinyllm":
        step = tinyllm_step(shape, kind, threads)
    else:
        step = torch_step(shape, kind, threads, engine)
    done, idle = 0, peak()
    for line in sys.stdin:
        began, used = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            loss = step(done)
            done += 1
        found = (time.perf_counter() - began, time.process_time() - used, loss, peak(), idle)
        print(json.dumps(found), flush=True)


def peak():
    """Return the largest memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compare(args, kind, threads):
    """Measure the engines in turn and print their lines."""
    engines = [e for e in ENGINES if args.bfloat16 or e != "bfloat16"]
    children = {}
    for engine in engines:
        command = [sys.executable, __file__, "--serve", engine, "--kind", kind]
        command += ["--shape", args.shape, "--threads", str(threads)]
        children[engine] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(engine, count):
        child = children[engine]
        print(count, file=child.stdin, flush=True)
        return json.loads(child.stdout.readline())

    for engine in engines:
        ask(engine, 3)  # torch.compile compiles
    rounds = [{engine: ask(engine, args.steps) for engine in engines} for _ in range(args.rounds)]
    for child in children.values():
        child.stdin.close()
        child.wait()
    for engine in engines:
        wall, cpu = (
            statistics.median(r[engine][i] / r["tinyllm"][i] for r in rounds) for i in (0, 1)
        )
        ms = statistics.median(r[engine][0] for r in rounds) / args.steps * 1000
        least = min(r[engine][0] for r in rounds) / args.steps * 1000
        _, _, loss, peak, idle = rounds[-1][engine]
        print(
            f"{kind:>6}  {threads} threads  {engine:>9}  {ms:7.1f} ms a step "
            f"(least {least:.1f})  {wall:5.2f} times "
            f"tinyllm's (CPU time {cpu:5.2f})  {(peak - idle) / 1e6:6.0f} MB  loss {loss:.4f}",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="diary")
    parser.add_argument("--kind", choices=("llama", "gpt2"), action="append")
    parser.add_argument("--threads", type=int, action="append")
    parser.add_argument("--steps", type=int, default=10, help="of a round")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--bfloat16", action="store_true", help="also PyTorch's mixed precision")
    parser.add_argument("--serve", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.shape, args.kind[0], args.threads[0])
        return
    for kind in args.kind or ("llama", "gpt2"):
        for threads in args.threads or (1, 2):
            compare(args, kind, threads)


if __name__ == "__main__":
    main()
