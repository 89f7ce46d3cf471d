"""Tests of this folder, run by a child against other kernels: mutated, or sanitized."""

import os
import shutil
import subprocess
import sys

from .build import HERE, ROOT, compiler, library

MOST_SECONDS = 900  # in which a kernel that never ends is given up
TESTS_FAILED = 1  # of pytest
FOUND_BY_TSAN = 66
OF_TSAN = "die_after_fork=0:ignore_noninstrumented_modules=1:report_thread_leaks=0:halt_on_error=1"
KINDS = {"thread": ("tsan",), "address,undefined": ("asan", "ubsan")}


def runtime(name):
    """The path of a shared library of the compiler."""
    done = subprocess.run(
        [*compiler(), f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def copied_tree(folder):
    """Copy what kernels are compiled from; return the root of the copy."""
    for name in ("include", "src/cuda"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


def mutated(mutation, root):
    """Return the changed texts of a tree's files, by path; what is replaced stands there once."""
    texts = {}
    for file, old, new in mutation.edits:
        path = root / file
        text = texts.get(path) or path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{mutation.name}: {file} has {text.count(old)} times {old!r}"
        texts[path] = text.replace(old, new)
    return texts


def plant(mutation, root):
    """Write the changed texts into a copied tree."""
    for path, text in mutated(mutation, root).items():
        path.write_text(text, encoding="utf-8")


def built(root=ROOT, kind=""):
    """Return a library of a tree's kernels, with a sanitizer if `kind` names one."""
    return library(root=root, sanitize=kind, only_sync_orders=kind == "thread")


def run_tests(names, emulator, kind="", reports=None, more=()):
    """Run tests of this folder until one fails; return the exit code (None: no end) and the text.

    Parameters
    ----------
    names
        Files or ``file::test``.
    emulator
        The library that devices load.
    kind
        The sanitizer that it was built with.
    reports
        A folder for what sanitizers say.
    more
        Further arguments of pytest.
    """
    environment = os.environ | {"EMB_EMULATOR": str(emulator), "PYTHONDONTWRITEBYTECODE": "1"}
    if kind:
        preloaded = [runtime(name) for name in (*KINDS[kind], "stdc++")]
        log = f":log_path={reports}/report" if reports else ""
        environment |= {
            "LD_PRELOAD": " ".join(preloaded),
            "PYTHONMALLOC": "malloc",
            "ARROW_DEFAULT_MEMORY_POOL": "system",
            "TSAN_OPTIONS": OF_TSAN + log,
            "ASAN_OPTIONS": "detect_leaks=0" + log,
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *more]
    command += ["-m", "not torture", *(f"{HERE.relative_to(ROOT)}/{name}" for name in names)]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=MOST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        return None, str(late)
    return done.returncode, done.stdout
