"""Describe the machine, and write the results of a benchmark."""

import json
import os
import pathlib
import platform

import tinyllm


def machine():
    """Return one line: the processor, its instruction sets, and the versions that ran on it."""
    cpu = tinyllm.cpu()
    flags = set()
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                flags = set(line.split())
                break
    except OSError:
        pass
    has = [f for f in ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "asimddp") if f in flags]
    return (
        f"{cpu.name} ({', '.join(has) or platform.machine()}), {os.cpu_count()} CPUs; "
        f"tinyllm {tinyllm.__version__} on {cpu.isa}; Python {platform.python_version()}"
    )


def save(out, lines, data):
    """Write OUT.json and OUT.md, both with the name of the machine, and print the latter."""
    about = machine()
    text = "\n".join([f"{about}.", "", *lines]) + "\n"
    pathlib.Path(f"{out}.json").write_text(json.dumps({"machine": about} | data, indent=1))
    pathlib.Path(f"{out}.md").write_text(text)
    print(text)
