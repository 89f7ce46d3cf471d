"""What a result must say of the machine it was measured on; nothing that names the machine."""

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import numpy as np

import embstore as es
from bench import raw_gather
from bench.peers import FBGEMM, TFRA, TORCHREC

ROOT = Path(__file__).resolve().parent.parent
THP = Path("/sys/kernel/mm/transparent_hugepage")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
DISTANCES = ROOT / "build" / "distances"  # builds by name; make bench-distances
WITHOUT_ACCOUNTING = ROOT / "build" / "without-accounting"  # another build; make bench-accounting
ENVIRONMENT = ("EMBSTORE_CPU", "EMBSTORE_NUM_THREADS", "OMP_NUM_THREADS", "GLIBC_TUNABLES")
HARDWARE = ("cpu_model", "n_cores", "caches", "memory_gib")


def _read(path):
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _output(*command):
    """Return what a command prints; empty where it fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def cpu_model():
    """Return the processor's name; where the system hides it, its family and model."""
    fields = {}
    for line in _read("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    name = fields.get("model name", platform.processor() or platform.machine())
    numbers = [fields.get(f, "?") for f in ("cpu family", "model", "stepping")]
    return f"{name} (family {numbers[0]}, model {numbers[1]}, stepping {numbers[2]})"


def caches():
    """Return the size of each cache of the first core, by level and kind."""
    sizes = {}
    for folder in sorted(CACHES.glob("index*")):
        kind = {"Data": "d", "Instruction": "i"}.get(_read(folder / "type"), "")
        sizes[f"L{_read(folder / 'level')}{kind}"] = _read(folder / "size")
    return sizes


def huge_pages():
    """Return the settings of transparent huge pages, the chosen word of each."""
    chosen = {}
    for name in ("enabled", "defrag", "shmem_enabled"):
        words = _read(THP / name)
        chosen[name] = words.partition("[")[2].partition("]")[0] or words
    return chosen


def version_of(package):
    """Return the version of an installed package; empty where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def library_digest():
    """Return the start of the SHA-256 of the native library: which build was measured."""
    path = Path(es.__file__).parent / "libembstore.so"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else ""


def facts():
    """Return the facts of this machine, its software and the code under test."""
    config = es.show_config(quiet=True)
    compiler = raw_gather.compiler()
    found = {
        "cpu_model": cpu_model(),
        "n_cores": len(os.sched_getaffinity(0)),
        "caches": caches(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "huge_pages": huge_pages(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": version_of("torch"),
        "compiler": _output(*compiler, "--version").partition("\n")[0] if compiler else "",
        "embstore": config["version"],
        "cpu_path": config["cpu_path"],
        "library_sha256": library_digest(),
        "commit": _output("git", "rev-parse", "HEAD"),
        "has_changes": bool(_output("git", "--no-optional-locks", "status", "--porcelain")),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "load_average": list(os.getloadavg()),
    }
    hardware = repr([found[name] for name in HARDWARE])
    return {"id": hashlib.sha256(hardware.encode()).hexdigest()[:8], **found}


def why_not_built(folder, target):
    """Return why there is no build in `folder` of these very sources; empty if there is."""
    library = folder / "embstore" / "libembstore.so"
    if not library.exists():
        return f"not built: make {target}"
    sources = (file for part in ("include", "src") for file in (ROOT / part).rglob("*"))
    is_old = any(file.stat().st_mtime > library.stat().st_mtime for file in sources)
    return f"older than its sources: make {target}" if is_old else ""


def why_no_accounting():
    """Return why there is no build without accounting of these very sources; empty if there is."""
    return why_not_built(WITHOUT_ACCOUNTING, "bench-accounting")


def distances():
    """Return the folders of builds with other distances, each named by what it sets."""
    return sorted(folder for folder in DISTANCES.glob("*") if folder.is_dir())


def why_no_distances():
    """Return why there are no builds with other distances; empty if there are."""
    target = "bench-distances"
    found = distances() or [DISTANCES]
    return next(filter(None, (why_not_built(folder, target) for folder in found)), "")


def lacks():
    """Return why each thing that a benchmark may need cannot be had here; empty where it can."""
    is_alone = len(os.sched_getaffinity(0)) < 2
    return {
        "torch": "" if has_module("torch") else "torch is not installed",
        "compiler": "" if raw_gather.compiler() else "there is no C compiler",
        "two cores": "there is one core only" if is_alone else "",
        "accounting": why_no_accounting(),
        "fbgemm": FBGEMM.why_not(),
        "tfra": TFRA.why_not(),
        "torchrec": TORCHREC.why_not(),
    }


def warnings(found):
    """Yield what makes figures of this machine doubtful, and what was left out."""
    load = found["load_average"][0]
    if load > 0.5:
        yield f"WARNING: other work ran on this machine (load {load:.1f}): the figures are noise"
    if found["huge_pages"].get("enabled") == "never":
        yield "WARNING: huge pages are switched off: rows and index lie on small pages"
    for name, why in lacks().items():
        if why:
            yield f"SKIPPED: what needs {name}: {why}"


def has_module(name):
    """Return whether a package is installed, without importing it."""
    return version_of(name) != ""
