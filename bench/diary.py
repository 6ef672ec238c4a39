"""Train the experiments of a public diary, and print which of them succeed.

    python bench/diary.py 42 43
    python bench/diary.py --seeds 3 synthetic
    python bench/diary.py --text shakespeare.txt 11 12

The diary (github.com/baehyunsol/femtoGPT, log.md) tells of 43 attempts to train small GPTs on a
CPU, most of which failed. The data are made here as its scripts made them, and each row has a
criterion of success. Every training stops when its criterion holds.

Rows on texts have the shape, the vocabulary and the steps of the diary. Its texts are not public:
here they are tinyshakespeare (--text), and the source of Python's standard library in place of that
of Rust. The bits per byte of a part that is held out must fall below four fifths of the diary's,
which are its nats per token and the bytes per token of a vocabulary of the same size here.
"""

import argparse
import math
import re
import resource
import sysconfig
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

import tinyllm as tl


def words(random):
    """Experiments 1 to 3, 9 and 10: words of consonants and vowels in turn."""
    lines, firsts = [], []
    for _ in range(8000):
        while (letter := random.choice(list("bcdfghjk"))) in firsts[-3:]:
            pass
        firsts.append(letter)
        word = [letter]
        while True:
            kind = "aeiou" if len(word) % 2 else "bcdfghjk"
            while (letter := random.choice(list(kind))) in word:
                pass
            word.append(letter)
            if len(word) == 6 or (len(word) == 4 and random.integers(2)):
                break
        lines.append("".join(word) + ";\n")
    return "".join(lines) + "\n"


def act(action, own, before):
    """What an action makes of the data of its line, or of the line before it."""
    if action == 0:
        return ""
    if action == 9:
        return "z"
    source = own if action < 5 else before
    part = source[:3] if action % 2 else source[-3:]
    if (action - 1) % 4 >= 2:
        part = part.translate(str.maketrans("abcdef", "ghijkl"))
    return part


def actions(random, count=50_000):
    """Experiments 20 to 27 and 30: data, an action, and its result."""
    lines, before = [], ""
    for _ in range(count):
        own = "".join(random.choice(list("abcdef"), random.integers(4, 9)))
        action = int(random.integers(10))
        if before or action not in (5, 6, 7, 8):
            lines.append(f"{own}{action}{act(action, own, before)};")
            before = own
    return "\n".join(lines) + "\n"


def sums(random):
    """Experiments 7, 8 and 15 to 17: additions."""
    pairs = random.integers(0, 101, (8000, 2)).tolist()
    return "\n".join(f"{a} + {b} = {a + b};" for a, b in pairs) + "\n"


def sequence(random):
    """Experiments 29 and 42: two sequences, of periods 8 and 5."""
    return "".join("abcdefgh"[i % 8] + "@#$%^"[i % 5] * 2 for i in range(2000))


def line_of(i):
    """Line i of experiment 43: five sequences."""
    last = "mnopqrs"[i % 7] * 2 + "tuvwxyz0123"[i % 11]
    return "abc"[i % 3] + "defg"[i % 4] + "hijkl"[i % 5] + last


def sequences(random):
    """Experiment 43: with noise."""
    text = list("".join(line_of(i) + ";\n" for i in range(2000)))
    symbols = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ;\n"
    for i in np.flatnonzero(random.random(len(text)) < 0.002):
        text[i] = symbols[random.integers(64)]
    return "".join(text) + "\n"


# ---- criteria: the run -> (what was reached, whether it is a success) ----


def sampled(run, count):
    """The texts of several samples of the whole distribution, as long as the context allows."""
    whole = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_tokens": run.settings.context - 1}
    return [run.model.generate("\n", seed=i, **whole).text for i in range(count)]


def greedy(run, prompt, tokens):
    return run.model.generate(prompt, max_tokens=tokens, temperature=0).text


def grammar(run, data):
    """95 % of 100 sampled words are words."""
    found = []
    for text in sampled(run, 20):
        found += text.split("\n")[:-1]
    right = [
        bool(re.fullmatch("([bcdfghjk][aeiou]){2,3};", word)) and len(set(word)) == len(word)
        for word in found[:100]
    ]
    return f"{sum(right)} of {len(right)} words", len(right) >= 90 and np.mean(right) >= 0.95


def additions(run, data):
    """95 % of the sums of pairs that the data lack are right."""
    seen = set(re.findall(r"(\d+) \+ (\d+)", data))
    random = np.random.default_rng(1)
    right = count = 0
    while count < 60:
        a, b = (str(x) for x in random.integers(0, 101, 2))
        if (a, b) in seen:
            continue
        count += 1
        lines = "\n" + "\n".join(data.split("\n")[:3]) + f"\n{a} + {b} ="
        right += greedy(run, lines, 6).startswith(f" {int(a) + int(b)};")
    return f"{right} of {count} sums", right >= 0.95 * count


def rates(run, data, each=10):
    """Every action is right in more than 70 % of the cases."""
    random = np.random.default_rng(1)
    lines = actions(random, 2000).split("\n")
    right = np.zeros(10)
    count = np.zeros(10)
    for i in range(10, len(lines) - 1):
        match = re.fullmatch(r"([a-f]+)(\d)(.*);", lines[i])
        action = int(match[2])
        if count[action] == each:
            continue
        count[action] += 1
        prompt = ("\n".join(lines[i - 10 : i]) + f"\n{match[1]}{action}")[-60:]
        right[action] += greedy(run, prompt, 6).startswith(f"{match[3]};")
    rate = right / count
    worst = int(rate.argmin())
    found = f"worst action {worst}, {rate[worst]:.0%}, mean {rate.mean():.0%}"
    return found, rate[worst] > 0.7


def one_action(run, data):
    """The diary's prompt of experiment 30, to the letter."""
    # The data may be the end of longer ones. But a letter that is not seen would be a g in one of
    # six cases only, so a model that has learnt the task takes the data for whole.
    found = greedy(run, "acbafbe3", 5)
    return repr(found), found == "gih;\n"


def three_lines(run, data):
    """The diary's prompts of experiment 42, and every phase."""
    text = sequence(None)
    right = 0
    for phase in range(40):
        start = text[phase * 3 : phase * 3 + 10]
        right += greedy(run, start, 20) == text[phase * 3 + 10 : phase * 3 + 30]
    return f"{right} of 40 phases", right == 40


def unseen_phases(run, data):
    """The next line of phases that the data do not have."""
    right = 0
    for i in range(2100, 4600, 50):
        prompt = "".join(line_of(j) + ";\n" for j in range(i - 4, i))
        right += greedy(run, prompt, 8) == line_of(i) + ";\n"
    return f"{right} of 50 unseen lines", right >= 48


def under(loss, step):
    def check(run, data):
        found = float(run.log.loss[-10:].mean())
        return f"loss {found:.4f}", found < loss and run.step <= step

    return check


class Row(NamedTuple):
    """An experiment."""

    data: object
    shape: tuple  # width, layers, heads
    context: int
    steps: int
    success: object
    positions: str = "rope"
    batch: int = 32
    optimizer: str = "muon"
    others: tuple = ()  # further arguments of tl.train, as pairs


ROWS = {
    "1": Row(words, (64, 4, 4), 80, 1000, grammar),
    "3": Row(words, (64, 6, 4), 80, 1000, grammar),
    "9": Row(words, (80, 6, 4), 80, 1000, grammar),
    "10": Row(words, (32, 4, 2), 80, 3000, grammar),
    "7": Row(sums, (64, 4, 4), 64, 1000, additions),
    "8": Row(sums, (64, 6, 4), 64, 1000, additions),
    "15": Row(sums, (160, 6, 8), 80, 200, under(2.0, 200)),
    "17": Row(sums, (80, 4, 4), 80, 1000, additions),
    "20": Row(actions, (80, 4, 4), 80, 1500, rates),
    "21": Row(actions, (96, 6, 4), 80, 1200, rates),
    "22": Row(actions, (144, 6, 6), 80, 1000, rates),
    "24": Row(actions, (96, 8, 4), 80, 4000, rates),
    "25": Row(actions, (144, 8, 6), 80, 800, rates),
    "27": Row(actions, (64, 4, 4), 80, 4000, rates),
    "29": Row(sequence, (144, 6, 6), 80, 200, under(0.1, 200), "none"),
    "29 learned": Row(sequence, (144, 6, 6), 80, 200, under(0.1, 200), "learned"),
    "30": Row(actions, (144, 6, 6), 80, 2000, one_action),
    "42": Row(sequence, (64, 8, 8), 32, 200, three_lines, "none"),
    # With learned positions and the 13 characters of the data, Muon and AdamW stay at a loss of
    # 0.73, AdamW in PyTorch alike. With RoPE, or with all bytes as the vocabulary, they do not.
    "42 small": Row(sequence, (32, 12, 4), 32, 300, three_lines),
    "42 bytes": Row(
        *(sequence, (32, 12, 4), 32, 600, three_lines, "learned", 32, "adamw"),
        (("tokenizer", "byte"), ("lr", 2e-3), ("weight_decay", 0.01)),
    ),
    "43": Row(sequences, (64, 4, 4), 48, 400, unseen_phases, "none"),
}


class Text(NamedTuple):
    """An experiment on a text."""

    data: str  # "shakespeare" or "source"
    shape: tuple  # width, layers, heads
    context: int
    steps: int  # of the diary
    loss: float  # of the diary, in nats per token
    tokenizer: str
    positions: str = "rope"
    dropout: float = 0.0


TEXTS = {
    "4": Text("source", (64, 6, 4), 64, 370, 2.6159, "byte"),
    "5": Text("source", (256, 8, 8), 64, 274, 2.7485, "byte"),
    "6": Text("source", (64, 4, 4), 64, 508, 2.3020, "byte"),
    "11": Text("shakespeare", (128, 6, 8), 80, 400, 3.2494, "byte"),
    "12": Text("shakespeare", (160, 8, 8), 80, 338, 5.8933, "bpe:566"),
    "18": Text("source", (80, 4, 4), 80, 1018, 4.7967, "bpe:1054"),
    "19": Text("source", (192, 8, 8), 80, 7684, 6.4670, "bpe:1054", dropout=0.1),
    "28": Text("source", (192, 8, 8), 80, 9440, 5.9775, "bpe:630", dropout=0.1),
    "32": Text("shakespeare", (144, 6, 6), 80, 580, 3.8, "bpe:384", "none"),
    "34": Text("source", (324, 9, 9), 128, 2697, 6.6, "bpe:1344", dropout=0.1),
    "35": Text("source", (96, 6, 4), 128, 730, 4.4256, "bpe:576", dropout=0.1),
    "36": Text("source", (144, 6, 6), 128, 780, 4.1666, "bpe:576"),
    "37": Text("source", (96, 6, 4), 128, 1020, 4.6270, "bpe:1344"),
    "41": Text("source", (80, 10, 10), 128, 533, 5.9167, "bpe:640"),
}

#: Shapes of which two steps must fit in a sixteenth of the memory that the diary's engine took:
#: width, layers, heads, tokens of the vocabulary, and the bytes of that sixteenth.
MEMORY = {
    "13": (640, 8, 16, 256, 32e9 * 0.9 / 16),
    "14": (768, 8, 16, 1054, 45 * 2**30 / 16),
}

#: Experiments with the data and the shape of another one.
SAME = {"2": "1", "16": "15", "23": "22", "26": "25"}


def run_row(name, seed, threads):
    """Train one experiment and print its line."""
    row = ROWS[SAME.get(name, name)]
    data = row.data(np.random.default_rng(seed))
    width, layers, heads = row.shape
    reached = ["", False]

    def evaluate(run):
        reached[:] = row.success(run, data)
        return not reached[1]

    began, used = time.perf_counter(), time.process_time()
    run = tl.train(
        data,
        layers=layers,
        width=width,
        heads=heads,
        context=row.context,
        batch=row.batch,
        steps=row.steps,
        positions=row.positions,
        optimizer=row.optimizer,
        **dict(row.others),
        seed=seed,
        evaluate=evaluate,
        threads=threads,
        progress=False,
    )
    print(
        f"{name:>10}  {row.success.__doc__ or 'the loss falls below the limit'}\n"
        f"{'':>12}{'yes' if reached[1] else 'NO'}: {reached[0]}; seed {seed}, {run.step} steps, "
        f"loss {run.log.loss[-1]:.4f}, {time.perf_counter() - began:.0f} s "
        f"({time.process_time() - used:.0f} s of CPU)",
        flush=True,
    )
    return reached[1]


def text_of(name, path):
    """Return a text of an experiment."""
    if name == "shakespeare":
        if path is None:
            raise SystemExit("this row needs --text, the file of tinyshakespeare")
        return Path(path).read_text("utf-8")
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return "".join(file.read_text("utf-8", "ignore") for file in files)[:4_000_000]


def run_text(name, seed, threads, path):
    """Train one experiment on a text and print its lines."""
    row = TEXTS[name]
    text = text_of(row.data, path)
    tokenizer = tl.train_tokenizer(text, row.tokenizer)
    per_token = len(text.encode()) / tl.count_tokens(text, tokenizer).sum()
    goal = row.loss / math.log(2) / per_token
    width, layers, heads = row.shape
    seen = []

    def evaluate(run):
        seen.append(run.log.validation[-1][1] / math.log(2) / per_token)
        return seen[-1] >= 0.8 * goal

    began, used = time.perf_counter(), time.process_time()
    run = tl.train(
        text,
        layers=layers,
        width=width,
        heads=heads,
        context=row.context,
        batch=32,
        micro_batch=8,
        steps=row.steps,
        tokenizer=tokenizer,
        positions=row.positions,
        dropout=row.dropout,
        validation=0.1,
        seed=seed,
        evaluate=evaluate,
        evaluate_every=20,
        threads=threads,
        progress=False,
    )
    good = seen[-1] < 0.8 * goal
    print(
        f"{name:>10}  Bits per byte of a part that is held out fall below 0.8 of the diary's.\n"
        f"{'':>12}{'yes' if good else 'NO'}: {seen[-1]:.3f}, the diary {goal:.3f}; seed {seed}, "
        f"{run.step} steps of {row.steps}, {time.perf_counter() - began:.0f} s "
        f"({time.process_time() - used:.0f} s of CPU), {peak() / 1e6:.0f} MB",
        flush=True,
    )
    return good


def peak():
    """Return the largest memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_memory(name, threads):
    """Do two steps of a large shape and print the memory they took."""
    width, layers, heads, tokens, most = MEMORY[name]
    began = time.perf_counter()
    tl.train(
        np.arange(20_000) * 7 % tokens,
        layers=layers,
        width=width,
        heads=heads,
        context=80,
        batch=32,
        micro_batch=4,
        steps=2,
        validation=0,
        threads=threads,
        progress=False,
    )
    print(
        f"{name:>10}  Two steps fit in a sixteenth of the diary's memory.\n"
        f"{'':>12}{'yes' if peak() < most else 'NO'}: {peak() / 1e6:.0f} MB, a sixteenth is "
        f"{most / 1e6:.0f} MB; {time.perf_counter() - began:.0f} s",
        flush=True,
    )
    return peak() < most


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    synthetic = [*ROWS, *SAME]
    known = [*MEMORY, *synthetic, *TEXTS]  # memory first: it is the peak of the process
    parser.add_argument("rows", nargs="+", help=f"{', '.join(known)}, or synthetic, or all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--text", metavar="FILE", help="tinyshakespeare")
    args = parser.parse_args()
    names = {"all": known, "synthetic": synthetic}.get(args.rows[0], args.rows)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"there is no row {unknown[0]}")
    done = []
    for name in names:
        for seed in range(args.first, args.first + args.seeds):
            if name in MEMORY:
                done.append(run_memory(name, args.threads))
                break
            if name in TEXTS:
                done.append(run_text(name, seed, args.threads, args.text))
            else:
                done.append(run_row(name, seed, args.threads))
    print(f"{sum(done)} of {len(done)} succeed")


if __name__ == "__main__":
    main()
