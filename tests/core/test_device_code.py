"""What clang makes of the kernels for GPUs: PoCL, which runs on the CPU, would not show it.

A product and a sum must not be contracted, denormals must be kept, and division must be exact.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "csrc/device/source"
CLANG = shutil.which("clang")

pytestmark = [
    pytest.mark.skipif(not SOURCE.is_dir(), reason="needs the source tree"),
    pytest.mark.skipif(CLANG is None, reason="needs clang"),
]

NVIDIA = ("-target", "nvptx64-nvidia-cuda")
AMD = ("-target", "amdgcn-amd-amdhsa", "-mcpu=gfx1030", "-nogpulib")


def assembly(tmp_path, files, *options):
    """The code that clang makes of some sources."""
    source = tmp_path / "kernels.cl"
    source.write_text("".join((SOURCE / f"{name}.cl").read_text() for name in files))
    command = [CLANG, "-x", "cl", "-cl-std=CL1.2", "-Xclang", "-finclude-default-header", "-O2"]
    command += [*options, "-S", str(source), "-o", str(tmp_path / "kernels.s")]
    result = subprocess.run(command, capture_output=True, text=True)
    if "No available targets" in result.stderr or "unknown target" in result.stderr:
        pytest.skip("this clang has no such target")
    assert result.returncode == 0, result.stderr
    return (tmp_path / "kernels.s").read_text()


FILES = [
    ("arithmetic", "functions", "ops"),
    ("arithmetic", "functions", "attention"),
    ("arithmetic", "functions", "selftest"),
    ("arithmetic", "functions", "router"),
    ("arithmetic", "functions", "recurrent"),
    ("arithmetic", "types", "rows"),
    ("arithmetic", "types", "matmul"),
    ("arithmetic", "types", "matmul", "fast"),
]


@pytest.mark.parametrize("files", FILES, ids=lambda files: files[-1])
def test_nothing_may_be_contracted_for_nvidia(files, tmp_path):
    """The assembler of NVIDIA may contract what has no .rn."""
    options = ("-DTYPE=3", "-DTOKENS=4", "-DEXPERTS", "-DTL_FLOAT64", "-DTL_DIVIDE")
    options += ("-DFAST",) if files[-1] == "fast" else ()
    code = assembly(tmp_path, files, *NVIDIA, *options, "-cl-fp32-correctly-rounded-divide-sqrt")
    found = re.findall(r"\b(?:add|sub|mul|fma|mad|div|sqrt|rcp)[a-z.]*\.f(?:32|64)\b", code)
    assert len(found) > 1
    assert {re.sub(r"^[a-z]+", "", name) for name in found} <= {".rn.f32", ".rn.f64"}
    assert ".ftz" not in code


@pytest.mark.parametrize("kind", [8, 12])
def test_fast_mode_calls_dot_products(kind, tmp_path):
    """In the code that drivers get which list cl_khr_integer_dot_product."""
    options = (f"-DTYPE={kind}", "-DTOKENS=1", "-DFAST", "-DTL_FLOAT64", "-emit-llvm")
    target = ("-target", "spir64-unknown-unknown", "-cl-std=CL3.0")
    assert "dot_4x8packed_ss_int" in assembly(tmp_path, FILES[-1], *target, *options, "-DTL_DOTS")
    assert "dot_4x8packed" not in assembly(tmp_path, FILES[-1], *target, *options)


def test_contraction_for_nvidia_would_be_seen(tmp_path):
    code = assembly(tmp_path, FILES[2], *NVIDIA, "-DTL_FLOAT64", "-ffp-contract=fast")
    assert re.search(r"\b(?:mul|add|fma)\.f32|fma\.rn\.f32", code)


def fused(code):
    return re.findall(r"\bv_(?:fma|fmac|mac|mad)[a-z_0-9]*_f(?:32|64)", code)


def test_nothing_is_contracted_for_amd(tmp_path):
    """Without native division, every fused operation in the code is a contraction."""
    code = assembly(tmp_path, FILES[2], *AMD)
    assert re.search(r"v_mul_f32", code)
    assert fused(code) == []
    modes = re.findall(r"amdhsa_float_denorm_mode_32 (\d)", code)
    assert modes
    assert set(modes) == {"3"}
    assert fused(assembly(tmp_path, FILES[2], *AMD, "-ffp-contract=fast"))
