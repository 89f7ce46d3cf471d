"""Builds the emulated kernels: src/cuda/*.cu as C++, and the emulator, into one shared library."""

import functools
import hashlib
import os
import shlex
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).resolve().parent
BUILT = ROOT / "build" / "emulator"
FLAGS = (
    *("-DEMB_EMULATED", "-Iinclude", f"-I{HERE}", "-std=c++17", "-O2", "-ffp-contract=off"),
    *("-fno-strict-aliasing", "-fvisibility=hidden", "-fPIC", "-g1", "-Wall", "-Wextra", "-Werror"),
)
OF_SANITIZER = {"thread": ("EMB_EMULATOR_TSAN",), "address": ("EMB_EMULATOR_ASAN",)}


def compiler():
    """The C++ compiler, as words of a command."""
    return shlex.split(os.environ.get("CXX", "")) or ["g++"]


def run(command, cwd=ROOT):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(map(str, command))}\n{done.stderr}")
    return done.stdout + done.stderr


def read_sources(kernels, root):
    """Yield the name and bytes of every file that a build depends on."""
    of_emulator = (*HERE.glob("*.h"), *HERE.glob("*.cpp"))
    rooms = ("core", "cuda")  # all that device code may include
    headers = [p for room in rooms for p in (root / "include" / "embstore" / room).rglob("*.h")]
    for path in sorted({*headers, *of_emulator, *kernels}):
        yield path.as_posix(), path.read_bytes()


@functools.cache
def version():
    return run([*compiler(), "--version"])


def key_of(kernels, flags, own_flags, root):
    """The hash of all that a library is made from."""
    digest = hashlib.sha256(repr((compiler(), version(), flags, own_flags)).encode())
    for name, text in read_sources(kernels, root):
        digest.update(f"\0{name}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()[:32]


def compiled(source, flags, root):
    """Return the path of an object file, compiled if there is none of the same preprocessed text.

    So a tree that differs in one header is compiled where that is included.
    """
    command = [*compiler(), *flags, "-x", "c++"]
    text = run([*command, "-E", "-P", source], root)
    digest = hashlib.sha256(repr((compiler(), version(), flags, text)).encode())
    target = BUILT / "objects" / f"{digest.hexdigest()[:32]}.o"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as aside:
            run([*command, "-c", source, "-o", f"{aside}/o"], root)
            os.replace(f"{aside}/o", target)
    return target


def library(
    sanitize="",
    defines=(),
    sources=(),
    with_engine=True,
    only_sync_orders=False,
    main=None,
    root=ROOT,
):
    """Return the path of a library of emulated kernels, built if it is not there.

    Parameters
    ----------
    sanitize
        As for ``-fsanitize=``: "thread" or "address,undefined". A process that loads the library
        needs the sanitizer's own library preloaded.
    defines
        Macros for the kernels: "NAME" or "NAME=VALUE".
    sources
        Paths of further ``.cu`` files.
    with_engine
        Whether the kernels of src/cuda are in it.
    only_sync_orders
        With "thread": whether ballots and shuffles order no memory among the lanes of a tile, as
        CUDA has it, so that a missing ``Tile.sync`` shows between them.
    main
        The path of a C++ file with a ``main``: the result is a program.
    root
        The folder whose include and src/cuda are compiled.

    Any number of processes may call it at once.
    """
    root = Path(root)
    of_engine = sorted((root / "src" / "cuda").glob("*.cu")) if with_engine else []
    kernels = [*of_engine, *(Path(p).resolve() for p in sources)]
    flags = [*FLAGS, *(f"-D{d}" for d in defines)]
    own_flags = list(FLAGS)  # the emulator itself is never instrumented
    if only_sync_orders:
        own_flags.append("-DEMB_EMULATOR_ONLY_SYNC_ORDERS")
    linked = ["-shared"]
    if sanitize:
        flags += [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer"]
        linked += [f"-fsanitize={sanitize}"]
        for word in sanitize.split(","):
            own_flags += [f"-D{d}" for d in OF_SANITIZER.get(word, ())]
    extra = [] if main is None else [Path(main).resolve()]
    if main is not None:
        linked.remove("-shared")
    folder = BUILT / key_of([*kernels, *extra], flags, [*own_flags, *linked], root)
    target = folder / ("emulator.so" if main is None else "program")
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(HERE / "emulator.cpp", own_flags), *((path, own_flags) for path in extra)]
    jobs += [(path, flags) for path in kernels]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda job: compiled(*job, root), jobs))
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        built = Path(aside) / target.name
        run([*compiler(), *map(str, objects), *linked, "-pthread", "-o", str(built)])
        os.replace(built, target)
    return target


def library_of_devices():
    """Return the library that devices load: the one that EMB_EMULATOR names, if that is set."""
    return os.environ.get("EMB_EMULATOR") or library()
