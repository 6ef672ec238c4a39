"""Run public suites of JSON schemas: how many compile, and which texts are judged wrongly.

    python bench/schema_suites.py FOLDER [--form any] [--every 10] [--show 20]

FOLDER holds JSON files of JSON-Schema-Test-Suite (``tests/draft2020-12``: lists of a schema and its
tests) or of MaskBench (``maskbench/data``: a schema and its tests). Neither is part of this
repository. A schema passes if it compiles and all its tests are judged rightly. A wrong text that
is accepted is the worst, so those are always shown.
"""

import argparse
import collections
import json
import multiprocessing
import time
from pathlib import Path

import tinyllm as tl


def cases(path):
    """Yield (name, schema, tests) of a file of either suite."""
    found = json.loads(path.read_text("utf-8"))
    for case in found if isinstance(found, list) else [found]:
        yield f"{path.name}: {case.get('description', '')}", case["schema"], case["tests"]


def judge(path, form):
    """Return a row for each schema of a file."""
    rows = []
    for name, schema, tests in cases(path):
        start = time.perf_counter()
        try:
            grammar = tl.Grammar.json_schema(schema, form=form)
        except (ValueError, tl.UnsupportedError) as error:
            rows.append((name, str(error), 0, [], []))
            continue
        took = time.perf_counter() - start
        accepted, rejected = [], []
        for test in tests:
            text = json.dumps(test["data"], ensure_ascii=False)
            try:
                good = grammar.accepts(text)
            except (ValueError, tl.UnsupportedError) as error:
                good = not test["valid"]
                text = f"{error}: {text}"
            if good and not test["valid"]:
                accepted.append(text)
            elif not good and test["valid"]:
                rejected.append(text)
        rows.append((name, None, took, accepted, rejected))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--form", choices=("compact", "any"), default="compact")
    parser.add_argument("--every", type=int, default=1, help="take only each n-th file")
    parser.add_argument("--show", type=int, default=0, help="how many failures to show")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    paths = sorted(options.folder.glob("*.json"))[:: options.every]
    with multiprocessing.Pool(options.jobs) as pool:
        jobs = pool.starmap(judge, ((path, options.form) for path in paths), chunksize=8)
        rows = [row for rows in jobs for row in rows]
    compiled = [row for row in rows if row[1] is None]
    passed = [row for row in compiled if not row[3] and not row[4]]
    times = sorted(1e3 * row[2] for row in compiled) or [0.0]
    print(f"{len(rows)} schemas, form {options.form!r}")
    print(f"compile       {len(compiled):6}  {len(compiled) / len(rows):.1%}")
    print(f"pass          {len(passed):6}  {len(passed) / len(rows):.1%}")
    print(f"wrong texts accepted  {sum(len(row[3]) for row in compiled)}")
    print(f"right texts rejected  {sum(len(row[4]) for row in compiled)}")
    print(
        f"compile time, ms: mean {sum(times) / len(times):.1f}, median "
        f"{times[len(times) // 2]:.1f}, 95 % {times[int(0.95 * len(times))]:.1f}, largest "
        f"{times[-1]:.1f}"
    )
    for row in compiled:
        for text in row[3]:
            print("ACCEPTED", row[0], text[:200])
    reasons = collections.Counter(
        row[1].split(": ", 2)[-1][:60] for row in rows if row[1] is not None
    )
    for reason, count in reasons.most_common(options.show):
        print(f"{count:5}  {reason}")
    for row in [row for row in compiled if row[4]][: options.show]:
        print("rejected", row[0], row[4][0][:300])
    for row in [row for row in rows if row[1] is not None][: options.show]:
        print("refused", row[0], row[1][:300])


if __name__ == "__main__":
    main()
