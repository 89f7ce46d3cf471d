"""Build the two native objects of the package; all that is declarative stands in pyproject.toml.

`embstore/libembstore.so` holds all C++ and exports the C ABI alone (src/libembstore.map).
`embstore/_core` is the Cython binding; it finds the library beside itself by RUNPATH.

Objects are kept in build/native-* and compiled again only when their source, any header or their
flags have changed: an editable install, `pip install .` and every Python version share them.

Environment: CXX, CXXFLAGS, LDFLAGS as everywhere; EMBSTORE_SANITIZE=address,undefined | thread.
"""

import fcntl
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

LIBRARY = "embstore.libembstore"
CORE = "embstore._core"
VERSION_SCRIPT = "src/libembstore.map"

SANITIZE = os.environ.get("EMBSTORE_SANITIZE", "")

# Results are the same bits on every path: no fused multiply-add, neither by contraction nor -mfma.
IS_X86 = platform.machine() in ("x86_64", "AMD64")
BASELINE = ["-march=x86-64-v2"] if IS_X86 else []
AVX2 = ["-mavx2", "-mbmi2"] if IS_X86 else []
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
FLAGS_OF = {
    "src/paths/avx2.cpp": [*BASELINE, *AVX2],
    "src/paths/avx512.cpp": [*BASELINE, *AVX2, *AVX512] if IS_X86 else [],
}

COMMON = ["-fPIC", "-pthread", "-Iinclude", "-fvisibility=hidden", "-fvisibility-inlines-hidden"]
CXX_ONLY = [
    *("-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
    *("-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion"),
]
LINK = ["-shared", "-pthread", "-Wl,-z,relro,-z,now", "-Wl,--enable-new-dtags"]
if SANITIZE:
    COMMON += ["-O1", "-g", "-fno-omit-frame-pointer", "-D_GLIBCXX_ASSERTIONS"]
    COMMON += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"]
    LINK += [f"-fsanitize={SANITIZE}"]
    OPTIMIZE = CORE_OPTIMIZE = []
else:
    COMMON += ["-g0", "-DNDEBUG", "-fstack-protector-strong"]
    COMMON += ["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3"]
    OPTIMIZE, CORE_OPTIMIZE = ["-O3"], ["-O2"]


def files(folder, *suffixes):
    """The files under `folder` with one of `suffixes`, sorted, as relative paths."""
    return sorted(str(p) for p in Path(folder).rglob("*") if p.suffix in suffixes)


def library_sources():
    """The C++ sources, in order of rising instruction set.

    The linker keeps the first copy of an inline function that several objects hold, so this order
    keeps code for a newer processor out of the paths of an older one.
    """
    paths = [f"src/paths/{name}.cpp" for name in ("baseline", "avx2", "avx512")]
    return [p for p in files("src", ".cpp") if p not in paths] + paths


class Toolchain:
    """The C++ compiler and the folder of kept objects."""

    def __init__(self):
        self.cxx = shlex.split(os.environ.get("CXX", "")) or [self._default_compiler()]
        if shutil.which(self.cxx[0]) is None:
            raise SystemExit(self._needs("a C++17 compiler (g++ or clang++)", "g++"))
        if not Path(sysconfig.get_path("include"), "Python.h").exists():
            raise SystemExit(self._needs("the headers of Python (Python.h)", "python3-dev"))
        self.cxxflags = shlex.split(os.environ.get("CXXFLAGS", ""))
        self.ldflags = shlex.split(os.environ.get("LDFLAGS", ""))
        variant = zlib.crc32(repr((self.cxx, self.cxxflags, SANITIZE)).encode())
        self.folder = Path("build", f"native-{variant:08x}")
        self.folder.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def _default_compiler():
        return next((c for c in ("g++", "clang++", "c++") if shutil.which(c)), "g++")

    @staticmethod
    def _needs(what, package):
        return (
            f"embstore needs {what} to build from source; "
            f"install it, e.g. 'apt install {package}', or install a prebuilt wheel"
        )

    def make(self, target, inputs, command):
        """Run `command`, which writes `target`, unless `target` is newer than `inputs`."""
        record = Path(f"{target}.command")
        if target.exists() and record.exists() and record.read_text() == shlex.join(command):
            if all(os.stat(i).st_mtime_ns < target.stat().st_mtime_ns for i in inputs):
                return target
        started = time.time_ns()
        record.unlink(missing_ok=True)
        print(f"embstore: building {target.name}", flush=True)
        if subprocess.run(command, check=False).returncode != 0:
            raise SystemExit(f"embstore: this command failed: {shlex.join(command)}")
        os.utime(target, ns=(started, started))  # an input saved meanwhile is newer
        record.write_text(shlex.join(command))
        return target

    def compile(self, source, name, flags, depends):
        target = self.folder / f"{name}.o"
        command = [*self.cxx, *flags, *self.cxxflags, "-c", source, "-o", str(target)]
        return self.make(target, [source, *depends], command)

    def link(self, objects, output, flags):
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        command = [*self.cxx, *LINK, *map(str, objects), "-o", output, *flags, *self.ldflags]
        if subprocess.run(command, check=False).returncode != 0:
            raise SystemExit(f"embstore: this command failed: {shlex.join(command)}")


class BuildNative(build_ext):
    """build_ext whose extensions are compiled by `Toolchain`."""

    def get_ext_filename(self, fullname):
        *package, name = fullname.split(".")
        if name == LIBRARY.rpartition(".")[2]:
            return os.path.join(*package, f"{name}.so")
        return super().get_ext_filename(fullname)

    def build_extensions(self):
        if sys.platform != "linux":
            raise SystemExit(f"embstore builds on Linux, not on {sys.platform}")
        tools = Toolchain()
        library, core = self.extensions
        with open(tools.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            version = f'-DEMBSTORE_VERSION="{self.distribution.get_version()}"'
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as jobs:
                core_object = jobs.submit(self.compile_core, tools, core)
                objects = [
                    jobs.submit(
                        tools.compile,
                        source,
                        source.removeprefix("src/").replace("/", "-"),
                        [*COMMON, *CXX_ONLY, *OPTIMIZE, *FLAGS_OF.get(source, BASELINE), version],
                        library.depends,
                    )
                    for source in library.sources
                ]
            self.link_library(tools, library, [o.result() for o in objects])
            self.link_core(tools, core, core_object.result())

    def compile_core(self, tools, ext):
        import numpy as np

        (pyx,) = ext.sources
        cpp = tools.folder / f"_core.{sys.implementation.cache_tag}.cpp"
        cython = [sys.executable, "-m", "cython", "--cplus", pyx, "-o", str(cpp)]
        tools.make(cpp, [pyx, *files("src", ".pxd", ".pxi")], cython)
        includes = [sysconfig.get_path("include"), sysconfig.get_path("platinclude")]
        flags = [
            *COMMON,
            *CORE_OPTIMIZE,
            *("-std=c++17", "-fwrapv", "-w"),  # generated code: its warnings are not ours
            *("-DNPY_NO_DEPRECATED_API=NPY_1_7_API_VERSION", f"-I{np.get_include()}"),
            *(f"-I{path}" for path in dict.fromkeys(includes)),
        ]
        return tools.compile(str(cpp), cpp.stem, flags, ext.depends)

    def link_library(self, tools, ext, objects):
        flags = ["-Wl,-soname,libembstore.so", f"-Wl,--version-script={VERSION_SCRIPT}"]
        flags += [] if SANITIZE else ["-Wl,--no-undefined"]
        tools.link(objects, self.get_ext_fullpath(ext.name), flags)

    def link_core(self, tools, ext, core_object):
        beside = os.path.dirname(self.get_ext_fullpath(LIBRARY))
        flags = [f"-L{beside}", "-l:libembstore.so", "-Wl,-rpath,$ORIGIN"]
        tools.link([core_object], self.get_ext_fullpath(ext.name), flags)


OPS = ("tensorflow", "jax")  # compiled where the framework is
HEADERS = [
    h
    for h in files("include", ".h") + files("src", ".h")
    if not any(f"src/{framework}/" in h for framework in OPS)
]

# What is shipped as data: device code is compiled where the device is, ops where the framework is.
DATA = {
    "embstore.include": "include",
    "embstore.cuda_src": "src/cuda",
    **{f"embstore.{framework}_src": f"src/{framework}" for framework in OPS},
}

setup(
    packages=[*find_packages(include=["embstore", "embstore.*"]), *DATA],
    package_dir=DATA,
    package_data={
        "embstore": ["py.typed", "*.pyi"],
        "embstore.include": ["**/*.h"],
        "embstore.cuda_src": ["*.cu"],
        **{f"embstore.{framework}_src": ["*.cc", "*.h"] for framework in OPS},
    },
    ext_modules=[
        Extension(LIBRARY, library_sources(), depends=[*HEADERS, VERSION_SCRIPT]),
        Extension(CORE, ["src/_core.pyx"], depends=HEADERS),
    ],
    cmdclass={"build_ext": BuildNative},
)
