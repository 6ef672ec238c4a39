"""What the core reads from Linux: the tests write their own /proc and /sys."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
MIB = 1 << 20

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None or not CSRC.exists(),
    reason="needs Linux, a C compiler and the sources",
)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The os files built with a root directory of the test, and that directory."""
    folder = tmp_path_factory.mktemp("os")
    root = folder / "root"
    command = ["cc", "-std=c11", "-O1", "-shared", "-fPIC", f'-DTL_OS_ROOT="{root}"', f"-I{CSRC}"]
    sources = [*sorted((CSRC / "base").glob("os*.c")), CSRC / "base" / "base.c"]
    subprocess.run([*command, *sources, "-o", folder / "os.so", "-lpthread"], check=True)
    core = ctypes.CDLL(folder / "os.so")
    core.tl_memory_available.restype = ctypes.c_uint64
    return core, root


@pytest.fixture
def system(library):
    """A function that writes files below that root and returns the library."""
    core, root = library

    def prepare(files):
        shutil.rmtree(root, ignore_errors=True)
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return core

    return prepare


V2 = {
    "proc/self/cgroup": "0::/a/b\n",
    "proc/self/mountinfo": "31 23 0:28 / /mnt/cg rw,nosuid shared:9 - cgroup2 cgroup2 rw,x\n",
}
V1 = {
    "proc/self/cgroup": "5:memory:/job\n4:cpu,cpuacct:/job\n0::/\n",
    "proc/self/mountinfo": (
        "31 23 0:28 / /cg/cpu rw - cgroup cgroup rw,cpuacct,cpu\n"
        "32 23 0:28 / /cg/memory rw - cgroup cgroup rw,memory\n"
    ),
}
MEMINFO = {"proc/meminfo": "MemTotal: 999999 kB\nMemFree: 1 kB\nMemAvailable:  102400 kB\n"}


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, None),
        (V2, None),
        (V2 | {"mnt/cg/a/b/cpu.max": "max 100000\n"}, None),
        (V2 | {"mnt/cg/a/b/cpu.max": "100000 100000\n"}, 1),
        (V2 | {"mnt/cg/a/b/cpu.max": "30000 100000\n"}, 1),
        (V2 | {"mnt/cg/a/b/cpu.max": "100001 100000\n"}, 2),
        (V2 | {"mnt/cg/a/b/cpu.max": "9900000 100000\n"}, None),
        (V2 | {"mnt/cg/a/cpu.max": "50000 100000\n", "mnt/cg/a/b/cpu.max": "max 100000\n"}, 1),
        (V2 | {"mnt/cg/cpu.max": "50000 100000\n"}, 1),
        (V2 | {"mnt/cg/a/b/cpu.max": "garbage"}, None),
        (V2 | {"mnt/cg/a/b/cpu.max": "100000 0\n"}, None),
        (
            V1 | {"cg/cpu/job/cpu.cfs_quota_us": "-1", "cg/cpu/job/cpu.cfs_period_us": "100000"},
            None,
        ),
        (
            V1 | {"cg/cpu/job/cpu.cfs_quota_us": "60000", "cg/cpu/job/cpu.cfs_period_us": "100000"},
            1,
        ),
        (V1 | {"cg/cpu/cpu.cfs_quota_us": "60000", "cg/cpu/cpu.cfs_period_us": "100000"}, 1),
        # a container that sees its own group as the root of the mount
        (
            V2
            | {
                "proc/self/cgroup": "0::/docker/x\n",
                "proc/self/mountinfo": "31 23 0:28 /docker/x /mnt/cg rw - cgroup2 cgroup2 rw\n",
                "mnt/cg/cpu.max": "100000 100000\n",
            },
            1,
        ),
    ],
)
def test_cpu_quota(system, files, cpus):
    core = system(files)
    every = len(os.sched_getaffinity(0))
    expected = every if cpus is None else min(cpus, every)
    assert core.tl_cpu_count(False) == expected


def test_cpu_affinity_and_cores(system):
    mine = sorted(os.sched_getaffinity(0))
    core = system({})
    if len(mine) > 1:
        os.sched_setaffinity(0, mine[:1])
        try:
            assert core.tl_cpu_count(False) == core.tl_cpu_count(True) == 1
        finally:
            os.sched_setaffinity(0, mine)
    assert core.tl_cpu_count(True) == len(mine)  # without topology files every CPU counts as a core
    siblings = f"{mine[0]}-{mine[-1]}\n"
    name = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    core = system({name.format(cpu): siblings for cpu in mine})
    assert core.tl_cpu_count(True) == 1
    core = system({name.format(cpu): ",".join(map(str, mine)) for cpu in mine})
    assert core.tl_cpu_count(True) == 1
    core = system({name.format(cpu): f"{cpu}\n" for cpu in mine})
    assert core.tl_cpu_count(True) == len(mine)
    assert core.tl_cpu_count(False) == len(mine)


@pytest.mark.parametrize(
    ("files", "mebibytes"),
    [
        ({}, None),
        (MEMINFO, 100),
        (
            MEMINFO
            | V2
            | {
                "mnt/cg/a/b/memory.max": f"{50 * MIB}\n",
                "mnt/cg/a/b/memory.current": f"{30 * MIB}\n",
                "mnt/cg/a/b/memory.stat": f"anon 5\ninactive_file {10 * MIB}\n",
            },
            30,
        ),
        (
            MEMINFO
            | V2
            | {"mnt/cg/a/b/memory.max": "max\n", "mnt/cg/a/b/memory.current": f"{30 * MIB}\n"},
            100,
        ),
        (
            MEMINFO
            | V1
            | {
                "cg/memory/job/memory.limit_in_bytes": f"{40 * MIB}\n",
                "cg/memory/job/memory.usage_in_bytes": f"{50 * MIB}\n",
            },
            0,
        ),
        (
            MEMINFO
            | V1
            | {
                "cg/memory/job/memory.limit_in_bytes": "9223372036854771712\n",
                "cg/memory/job/memory.usage_in_bytes": f"{50 * MIB}\n",
            },
            100,
        ),
    ],
)
def test_available_memory(system, files, mebibytes):
    expected = 2**64 - 1 if mebibytes is None else mebibytes * MIB
    assert system(files).tl_memory_available() == expected
