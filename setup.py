"""The extension module; everything else about the package is in pyproject.toml."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
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
LIBRARIES = [] if sys.platform == "win32" else ["m", "pthread"]
if sys.platform.startswith("linux"):
    LIBRARIES.append("dl")  # a part of the C library since glibc 2.34
if STRICT:
    cflags.append("-Werror")
if SANITIZE:
    cflags += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=undefined", "-DTL_NO_INLINE"]
    ldflags.append(f"-fsanitize={SANITIZE}")
if COVERAGE:
    cflags.append("--coverage")
    ldflags.append("--coverage")


#: The sources of the kernels of devices, in the order of enum tl_source in csrc/device/device.h.
KERNELS = (
    "arithmetic",
    "functions",
    "types",
    "matmul",
    "ops",
    "attention",
    "selftest",
    "router",
    "recurrent",
    "fast",
    "rows",
)


def write_kernels(path="csrc/device/sources.c"):
    """Write the sources of the kernels as arrays of C, which no compiler limits in length."""
    lines = ["/* Made by setup.py from the files in csrc/device/source. */"]
    lines.append('#include "device/sources.h"\n')
    for name in KERNELS:
        with open(f"csrc/device/source/{name}.cl", "rb") as file:
            text = file.read()
        lines.append(f"static const unsigned char {name}[] = {{")
        lines += [",".join(map(str, text[i : i + 512])) + "," for i in range(0, len(text), 512)]
        lines.append("};\n")
    lines.append("const struct tl_source_file tl_source_files[TL_SOURCE_FILES] = {")
    lines += [f'    {{"{name}.cl", {name}, sizeof({name})}},' for name in KERNELS]
    lines.append("};\n")
    text = "\n".join(lines)
    if os.path.exists(path):
        with open(path, encoding="ascii") as file:
            if file.read() == text:
                return
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


write_kernels()

SOURCES = sorted(glob("csrc/**/*.c", recursive=True))

#: How much the compiler optimizes a file: the level of the first row whose pattern it matches. A
#: higher level takes longer, so it is only where it was measured to make the program faster.
LEVELS = (
    ("*_plain.c", "-O2"),  # the sets for CPUs without FMA, which wait for fma() of libm
    ("*_scalar.c", "-O2"),
    ("*/types/pack_codebook.c", "-O2"),  # two to four times as fast as with -O3
    ("csrc/kernels/*", "-O3"),
    ("csrc/training/*", "-O3"),
    ("csrc/types/*", "-O3"),
    ("csrc/forward/*", "-O2"),
    ("csrc/text/*", "-O2"),
    ("*", "-O1"),
)


def flags_of(source, flags):
    """Return the compiler's flags for one file."""
    source = source.replace(os.sep, "/")
    level = next(level for pattern, level in LEVELS if fnmatchcase(source, pattern))
    return [level if flag == "-O3" else flag for flag in flags]


class BuildExt(build_ext):
    """Compile the files of the extension in parallel, which setuptools does not do."""

    def build_extension(self, ext):
        compile_one = self.compiler.compile

        def compile_all(sources, *args, extra_postargs=(), **kwargs):
            def one(source):
                flags = flags_of(source, extra_postargs)
                return compile_one([source], *args, extra_postargs=flags, **kwargs)

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [name for names in pool.map(one, sources) for name in names]

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
            libraries=LIBRARIES,
            extra_compile_args=cflags,
            extra_link_args=ldflags,
        )
    ],
)
