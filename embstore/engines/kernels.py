"""Device code: compiled by NVRTC to cubins on first use, and kept on disk.

CuPy's own compiler is not asked: it adds -ftz=true, and its cache does not see headers. The name of
a kept cubin holds the sha256 of all that made it, so nothing stale is ever found; its bytes end
with their own sha256, so nothing torn is ever used. No driver and no device is needed to compile.
"""

import contextlib
import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from embstore.engines.kernel_sources import (
    Sources,
    argument_fields,
    installed_sources,
    struct_fields,
)
from embstore.errors import DeviceError, InternalError

__all__ = [
    "Resources",
    "Sources",
    "argument_fields",
    "cubins",
    "installed_sources",
    "resources",
    "struct_fields",
    "target_of",
]

# The same bits as on the CPU: no contraction to multiply-add, subnormals, IEEE division and roots.
OPTIONS = (
    *("-std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true"),
    "--device-int128",
)
DIGEST_BYTES = 32
ELF = b"\x7fELF"
REPORT = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)'(?P<functions>.*?)"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


class Resources(NamedTuple):
    """What a kernel takes of a multiprocessor, per thread."""

    registers: int
    spill_bytes: int
    stack_bytes: int


@dataclass(frozen=True)
class Compiled:
    """A translation unit as a cubin, and what the compiler said."""

    cubin: bytes
    log: str


def cache_folder() -> Path | None:
    """Return the folder of kept cubins; None if this user has no home."""
    given = os.environ.get("EMBSTORE_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "embstore" / "cubin"
    except RuntimeError:
        return None


def nvrtc_version() -> tuple[int, int]:
    """Return the version of NVRTC.

    Raises
    ------
    DeviceError
        If CuPy or NVRTC is not installed.
    """
    try:
        from cupy_backends.cuda.libs import nvrtc

        major, minor = nvrtc.getVersion()
    except (ImportError, RuntimeError, OSError) as error:
        raise DeviceError(f"device code cannot be compiled: {error}") from error
    return int(major), int(minor)


def target_of(arch: int) -> int:
    """Return what to compile for, to run on compute capability `arch` (90 is 9.0).

    It is `arch`, or where this NVRTC is older, the newest that it knows of the same major version.

    Raises
    ------
    DeviceError
        If there is none.
    """
    version = nvrtc_version()
    from cupy_backends.cuda.libs import nvrtc

    known = [int(a) for a in nvrtc.getSupportedArchs()]
    fitting = [a for a in known if a // 10 == arch // 10 and a <= arch]
    if not fitting:
        raise DeviceError(
            f"NVRTC {version[0]}.{version[1]} compiles for compute capability "
            f"{min(known) / 10} to {max(known) / 10}, not for {arch / 10}"
        )
    return max(fitting)


def key_of(sources: Sources, unit: Path, options: tuple[str, ...]) -> str:
    """Return the sha256 of all that a cubin is made of."""
    digest = hashlib.sha256()
    parts = [repr(nvrtc_version()), *options, unit.name, unit.read_text()]
    for header in sources.headers():
        parts += [header.relative_to(sources.include).as_posix(), header.read_text()]
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def compiled(sources: Sources, unit: Path, options: tuple[str, ...]) -> Compiled:
    """Compile a translation unit.

    Raises
    ------
    InternalError
        If it does not compile; with what NVRTC says.
    """
    from cupy_backends.cuda.libs import nvrtc

    program = nvrtc.createProgram(unit.read_text(), unit.name, (), ())
    try:
        try:
            nvrtc.compileProgram(program, (*options, f"-I{sources.include}"))
        except nvrtc.NVRTCError as error:
            log = nvrtc.getProgramLog(program).rstrip("\0\n")
            raise InternalError(f"{unit.name} does not compile ({error}):\n{log}") from None
        # getCUBIN drops the last byte, as if a cubin were a string; a header of it ends there.
        return Compiled(nvrtc.getCUBIN(program) + b"\0", nvrtc.getProgramLog(program).rstrip("\0"))
    finally:
        nvrtc.destroyProgram(program)


def kept(path: Path) -> bytes | None:
    """Return a cubin that was kept; None if there is none, or it is damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    cubin, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    is_whole = cubin.startswith(ELF) and hashlib.sha256(cubin).digest() == digest
    return cubin if is_whole else None


def keep(path: Path, cubin: bytes) -> None:
    """Keep a cubin, all of it or nothing; where the folder takes no file, it is not kept."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(cubin + hashlib.sha256(cubin).digest())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


def cubin_of(sources: Sources, unit: Path, arch: int) -> bytes:
    """Return a translation unit as a cubin, from the disk if it was kept there."""
    options = (*OPTIONS, f"--gpu-architecture=sm_{arch}")
    folder = cache_folder()
    if folder is None:
        return compiled(sources, unit, options).cubin
    path = folder / f"{unit.stem}-sm_{arch}-{key_of(sources, unit, options)}.cubin"
    cubin = kept(path)
    if cubin is None:
        cubin = compiled(sources, unit, options).cubin
        keep(path, cubin)
    return cubin


def cubins(arch: int, sources: Sources | None = None) -> dict[str, bytes]:
    """Return the cubin of each translation unit, by its name without the suffix.

    Parameters
    ----------
    arch
        The compute capability to run on: 90 is 9.0.
    sources
        Where the sources lie; those installed if None.

    Raises
    ------
    DeviceError
        If NVRTC is missing, or too old or too new for `arch`.
    InternalError
        If a unit does not compile.
    """
    sources = sources or installed_sources()
    target, units = target_of(arch), sources.units()
    return {unit.stem: cubin_of(sources, unit, target) for unit in units}


def resources_in(log: str) -> dict[str, Resources]:
    """Return what each kernel takes, with the functions it calls, from the report of ptxas."""
    found = {}
    for report in REPORT.finditer(log):
        frames = [tuple(map(int, frame)) for frame in FRAME.findall(report["functions"])]
        found[report["kernel"]] = Resources(
            registers=int(report["registers"]),
            spill_bytes=sum(stores + loads for _, stores, loads in frames),
            stack_bytes=sum(stack for stack, _, _ in frames),
        )
    return found


def resources(arch: int, sources: Sources | None = None) -> dict[str, Resources]:
    """Return what each kernel takes on compute capability `arch`; compiles afresh."""
    sources = sources or installed_sources()
    options = (*OPTIONS, f"--gpu-architecture=sm_{target_of(arch)}", "--ptxas-options=-v")
    found: dict[str, Resources] = {}
    for unit in sources.units():
        found |= resources_in(compiled(sources, unit, options).log)
    return found
