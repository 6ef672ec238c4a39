"""The extension module; everything else about the package is in pyproject.toml."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SANITIZE = os.environ.get("TINYLLM_SANITIZE", "")  # e.g. "address,undefined" or "thread"
COVERAGE = bool(os.environ.get("TINYLLM_COVERAGE"))
DEBUG = bool(SANITIZE or COVERAGE or os.environ.get("TINYLLM_DEBUG"))
STRICT = bool(os.environ.get("TINYLLM_STRICT"))  # warnings are errors: for CI

if sys.platform == "win32":
    cflags, ldflags = ["/std:c11", "/experimental:c11atomics", "/O2", "/W3", "/fp:precise"], []
else:
    # Exact mode defines every rounding: never -ffast-math, never a fused operation that the
    # source does not ask for, and the instruction set is chosen at run time, never by -march.
    cflags = ["-std=c11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
    cflags += ["-fvisibility=hidden", "-Wall", "-Wextra", "-Wconversion", "-Wshadow"]
    cflags += ["-Wmissing-prototypes", "-Wstrict-prototypes", "-Wvla", "-Wno-sign-conversion"]
    cflags += ["-Wno-missing-field-initializers"]
    # Reports of sanitizers need lines, not variables, which gcc would follow for minutes.
    debug = ["-O1", "-g1" if SANITIZE else "-g", "-UNDEBUG", "-fno-omit-frame-pointer"]
    cflags += debug if DEBUG else ["-O3", "-g0"]
    ldflags = []
if STRICT:
    cflags.append("-Werror")
if SANITIZE:
    cflags += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=undefined", "-DTL_NO_INLINE"]
    ldflags.append(f"-fsanitize={SANITIZE}")
if COVERAGE:
    cflags.append("--coverage")
    ldflags.append("--coverage")


# The kernels take nearly all the time, so they come first: each core gets its share of them.
SOURCES = sorted(glob("csrc/**/*.c", recursive=True), key=lambda path: "kernels_" not in path)


class BuildExt(build_ext):
    """Compile the files of the extension in parallel, which setuptools does not do."""

    def build_extension(self, ext):
        compile_one = self.compiler.compile

        def compile_all(sources, *args, **kwargs):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = pool.map(lambda source: compile_one([source], *args, **kwargs), sources)
                return [name for names in objects for name in names]

        self.compiler.compile = compile_all
        super().build_extension(ext)


setup(
    cmdclass={"build_ext": BuildExt},
    ext_modules=[
        Extension(
            "tinyllm._core",
            sources=SOURCES,
            depends=sorted(glob("csrc/**/*.h", recursive=True)),
            include_dirs=["csrc", numpy.get_include()],
            libraries=[] if sys.platform == "win32" else ["m", "pthread"],
            extra_compile_args=cflags,
            extra_link_args=ldflags,
        )
    ],
)
