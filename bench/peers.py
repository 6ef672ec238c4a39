"""Compare the speed of tinyllm in both modes with llama.cpp on the same files, interleaved.

    python bench/make_model.py Q4_K_M /tmp/Q4_K_M.gguf
    python bench/peers.py /tmp/Q4_K_M.gguf [more.gguf] [--threads 1,2] [--rounds 5] [--out peers]

llama.cpp is the one in `llama-cpp-python` (`pip install llama-cpp-python`). Every engine runs in
a process of its own and sleeps while another one is measured; the engines take turns within a
round, so that a slow minute of the machine hits all of them. Measured, as llama-bench names it:
tg64 (64 tokens decoded one by one from an empty context), pp512 and pp2048 (a prompt), and

- b2, b4, b8, b16: 32 tokens of each of so many sequences, one of each per call; all tokens count,
- busy: tg64 while another process computes without end on the same CPUs, as a share of tg64,
- load: seconds from opening the file to the logits of a one-token prompt, tokenizer loaded, file
  in the page cache,
- memory: resident bytes after pp2048 with the mapped file, and without it.

bench/drafts.py compares what drafts save.

A ratio is the median over rounds of llama.cpp's seconds / those of tinyllm: above 1 is faster than
llama.cpp. Writes OUT.json and OUT.md. `--isa` forces an instruction set on tinyllm only; for a fair
comparison point LLAMA_CPP_LIB_PATH to a llama.cpp built for the same one.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import report

ENGINES = ("llama.cpp", "exact", "fast")
SEED = 12345
VOCABULARY = 32000
LARGEST = 16  # the largest batch


class Ours:
    """tinyllm in one of its modes."""

    def __init__(self, path, mode, threads):
        import tinyllm

        self.model = tinyllm.load(path, threads=threads, mode=mode)
        self.session = self.model.session()

    def prompt(self, tokens):
        """Run a prompt from an empty context."""
        self.session.rewind(len(self.session))
        self.session.eval(tokens)

    def decode(self, tokens):
        """Run tokens one by one from an empty context."""
        self.session.rewind(len(self.session))
        for token in tokens:
            self.session.eval([token])

    def batch(self, size, tokens):
        """Run tokens one by one, in so many contexts together, which are empty at first."""
        import numpy

        sessions = [self.model.session().core for _ in range(size)]
        for token in tokens:
            self.model.run(sessions, [numpy.array([token], numpy.int32)] * size, range(size))

    def name(self):
        """What ran."""
        import tinyllm

        return f"tinyllm {tinyllm.__version__}, {tinyllm.cpu().isa}"


class LlamaCpp:
    """llama.cpp through the C interface that llama-cpp-python binds."""

    def __init__(self, path, threads):
        import llama_cpp

        self.lib = llama_cpp
        quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(quiet, None)
        self.keep = [quiet]
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            os.fsencode(path), llama_cpp.llama_model_default_params()
        )
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = 2176
        options.n_batch = 2048
        options.n_ubatch = 512
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        if not self.context:
            raise SystemExit(f"llama.cpp cannot open {path}")
        options.n_seq_max, options.n_ctx = LARGEST, 256 * LARGEST
        self.options, self.shared = options, None  # of batches

    def run(self, tokens):
        """Append tokens to the context."""
        array = (self.lib.llama_token * len(tokens))(*tokens)
        batch = self.lib.llama_batch_get_one(array, len(tokens))
        if self.lib.llama_decode(self.context, batch) != 0:
            raise SystemExit("llama_decode failed")
        self.lib.llama_get_logits_ith(self.context, -1)

    def prompt(self, tokens):
        """Run a prompt from an empty context."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        self.run(tokens)

    def decode(self, tokens):
        """Run tokens one by one from an empty context."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        for token in tokens:
            self.run([token])

    def batch(self, size, tokens):
        """Run tokens one by one, in so many contexts together, which are empty at first."""
        if self.shared is None:
            self.shared = self.lib.llama_init_from_model(self.model, self.options)
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.shared), True)
        batch = self.lib.llama_batch_init(size, 0, 1)
        batch.n_tokens = size
        for position, token in enumerate(tokens):
            for i in range(size):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position, True
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, i
            if self.lib.llama_decode(self.shared, batch) != 0:
                raise SystemExit("llama_decode failed")
            self.lib.llama_get_logits_ith(self.shared, size - 1)
        self.lib.llama_batch_free(batch)

    def name(self):
        """What ran."""
        return f"llama-cpp-python {self.lib.__version__}"


def resident():
    """Return the resident bytes of this process, and those that are not of a mapped file."""
    total = anonymous = 0
    with open("/proc/self/smaps_rollup", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("Rss:"):
                total = int(line.split()[1]) * 1024
            elif line.startswith("Anonymous:"):
                anonymous = int(line.split()[1]) * 1024
    return {"resident": total, "anonymous": anonymous}


def worker(engine, path, threads):
    """Run what standard input asks for; answer in JSON lines."""
    import numpy  # noqa: F401  (both engines need it: not a part of loading)

    if engine == "llama.cpp":
        import llama_cpp  # noqa: F401
    else:
        import tinyllm  # noqa: F401
    start = time.perf_counter()
    it = LlamaCpp(path, threads) if engine == "llama.cpp" else Ours(path, engine, threads)
    it.prompt([1])
    print(json.dumps({"load": time.perf_counter() - start, "name": it.name()}), flush=True)
    for line in sys.stdin:
        what, count = line.split()
        tokens = [1 + (SEED * (i + 1)) % (VOCABULARY - 1) for i in range(int(count))]
        start = time.perf_counter()
        if what[0] == "b":
            it.batch(int(what[1:]), tokens)
        else:
            (it.prompt if what == "pp" else it.decode)(tokens)
        print(json.dumps({"seconds": time.perf_counter() - start, **resident()}), flush=True)


class Worker:
    """One engine in a process of its own, with a tinyllm of its own if `source` says where."""

    def __init__(self, engine, path, threads, source=None):
        environment = dict(os.environ)
        if source is not None:
            environment["PYTHONPATH"] = str(source)
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", engine, path, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.loaded = self.answer()

    def answer(self):
        """Wait for the next line."""
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self, what, count):
        """Run one measurement."""
        self.process.stdin.write(f"{what} {count}\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self):
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def median_ratio(seconds, other):
    """Return how many times as fast an engine is: the median over paired rounds."""
    return statistics.median(b / a for a, b in zip(seconds, other, strict=True))


FIGURES = {"tg64": ("tg", 64), "pp512": ("pp", 512), "pp2048": ("pp", 2048)}
FIGURES |= {f"b{size}": (f"b{size}", 32) for size in (2, 4, 8, LARGEST)} | {"busy": ("tg", 64)}


def measure_file(path, threads, rounds, figures):
    """Measure one file: return engine -> figure -> list over rounds, or a number."""
    engines = ENGINES
    out = {engine: {figure: [] for figure in figures} for engine in engines}
    for engine in engines:
        loads = []
        for _ in range(3):
            one = Worker(engine, path, threads)
            loads.append(one.loaded["load"])
            one.close()
        out[engine]["load"] = statistics.median(loads)
    workers = {engine: Worker(engine, path, threads) for engine in engines}
    for engine, one in workers.items():
        out[engine]["name"] = one.loaded["name"]
        one.ask("pp", 512)  # warm up
        one.ask("tg", 8)
        if any(FIGURES[figure][0][0] == "b" for figure in figures):
            one.ask("b2", 2)
    for number in range(rounds):
        for figure in figures:
            if figure == "busy" or (figure == "pp2048" and number >= max(2, rounds // 2)):
                continue
            for engine, one in workers.items():
                answer = one.ask(*FIGURES[figure])
                out[engine][figure].append(answer["seconds"])
                if number == 0 and FIGURES[figure][0][0] != "b":
                    out[engine] |= {k: answer[k] for k in ("resident", "anonymous")}
    if "busy" in figures:
        spinner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            time.sleep(0.5)
            for _ in range(rounds):
                for engine, one in workers.items():
                    out[engine]["busy"].append(one.ask(*FIGURES["busy"])["seconds"])
        finally:
            spinner.kill()
            spinner.wait()
    for one in workers.values():
        one.close()
    return out


def speed(figures, figure):
    """Return tokens per second."""
    what, count = FIGURES[figure]
    each = int(what[1:]) if what[0] == "b" else 1
    return each * count / statistics.median(figures[figure])


def tables(results, figures):
    """Return all results as Markdown."""
    lines = []
    speeds = [figure for figure in figures if figure != "busy"]
    for threads, files in results.items():
        lines += [
            "",
            f"{threads} thread{'s' * (threads != 1)}: llama.cpp's tokens per second, and how many "
            "times as fast tinyllm is",
            "",
            f"| file | {' | '.join(f'{figure} | exact | fast' for figure in speeds)} |",
            "|---" * (1 + 3 * len(speeds)) + "|",
        ]
        for name, by in files.items():
            cells = []
            for figure in speeds:
                theirs = by["llama.cpp"]
                cells.append(f"{speed(theirs, figure):.1f}")
                for mode in ENGINES[1:]:
                    cells.append(f"{median_ratio(by[mode][figure], theirs[figure]):.2f}")
            lines.append(f"| {name} | {' | '.join(cells)} |")
        head = ["file", "engine", "load, s", "resident, MB", "of it no file, MB"]
        long, busy = {"pp512", "pp2048"} <= {*figures}, {"tg64", "busy"} <= {*figures}
        head += ["pp2048 / pp512"] * long + ["tg64 beside a busy process"] * busy
        lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for name, by in files.items():
            for engine, seen in by.items():
                cells = [name, engine, f"{seen['load']:.3f}"]
                cells += [f"{seen[key] / 1e6:.0f}" for key in ("resident", "anonymous")]
                cells += [f"{speed(seen, 'pp2048') / speed(seen, 'pp512'):.2f}"] if long else []
                cells += [f"{speed(seen, 'busy') / speed(seen, 'tg64'):.0%}"] if busy else []
                lines.append(f"| {' | '.join(cells)} |")
    if len(results) > 1:
        few, many = min(results), max(results)
        lines += ["", f"Speed with {many} threads over speed with {few}:", ""]
        lines += [f"| file | engine | {' | '.join(speeds)} |", "|---" * (2 + len(speeds)) + "|"]
        for name, by in results[few].items():
            for engine, seen in by.items():
                more = results[many][name][engine]
                gains = [f"{speed(more, f) / speed(seen, f):.2f}" for f in speeds]
                lines.append(f"| {name} | {engine} | {' | '.join(gains)} |")
    return lines


def main():
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="GGUF files of a vocabulary of 32,000")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--figures", default=",".join(FIGURES), help="some of %(default)s")
    parser.add_argument("--isa", help="TINYLLM_ISA of tinyllm")
    parser.add_argument("--out", default="peers")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.models[0], int(options.threads))
        return
    if options.isa:
        os.environ["TINYLLM_ISA"] = options.isa
    results = {}
    figures = [figure for figure in FIGURES if figure in options.figures.split(",")]
    for threads in map(int, options.threads.split(",")):
        results[threads] = {}
        for path in options.models:
            name = pathlib.Path(path).stem
            results[threads][name] = by = measure_file(path, threads, options.rounds, figures)
            print(f"{name}, {threads} threads", flush=True)
            for key in (figure for figure in figures if figure != "busy"):
                ratios = [median_ratio(by[m][key], by["llama.cpp"][key]) for m in ENGINES[1:]]
                print(f"  {key:6} exact {ratios[0]:.2f}  fast {ratios[1]:.2f}", flush=True)
    names = {e["name"] for files in results.values() for by in files.values() for e in by.values()}
    report.save(
        options.out,
        [f"{'; '.join(sorted(names))}.", *tables(results, figures)],
        {"engines": sorted(names), "results": results},
    )


if __name__ == "__main__":
    main()
