"""Native ops of frameworks: compiled against what is installed, on first use, and kept.

The name of a kept library holds the sha256 of all that made it. A build writes a file of its own
and renames it; a second process that needs the same one waits for the first.
"""

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from embstore._config import get_include
from embstore.errors import ArgumentError, InternalError

BESIDE = Path(__file__).resolve().parent


class Recipe(NamedTuple):
    """What the ops of a framework are made of."""

    what: str  # in messages: "JAX ops"
    room: str  # of the sources, src/<room>, and of the cache, <room>-op
    version: str  # of the framework
    flags: tuple[str, ...]
    link_flags: tuple[str, ...] = ()


def build(recipe: Recipe) -> str:
    """Compile ops, unless that has been done, and return the path of the library.

    They are kept in ``$EMBSTORE_CACHE/<room>-op``, by default ``~/.cache/embstore/<room>-op``.

    Raises
    ------
    ArgumentError
        If there is no C++ compiler: $CXX, g++, clang++ or c++.
    InternalError
        If the ops do not compile; with what the compiler says.
    """
    sources = _sources(recipe)
    command = _command(recipe, sources)
    folder = _cache_folder(f"{recipe.room}-op")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest = _digest(recipe, command, sources)
    library = folder / f"embstore-{recipe.room}{recipe.version}-{digest}.so"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _compile(recipe.what, command, library)
    return str(library)


def why_not(switch: str, load: Callable[[], object]) -> str | None:
    """Return why a framework goes without its ops, or None after `load` has loaded them.

    `switch` is the environment variable that turns them off.
    """
    if os.environ.get(switch, "").lower() == "off":
        return f"{switch}=off"
    try:
        load()
    except (ArgumentError, InternalError, OSError) as error:
        return str(error)
    return None


def _compiler(what: str) -> list[str]:
    asked = shlex.split(os.environ.get("CXX", ""))
    for candidate in [asked] if asked else [["g++"], ["clang++"], ["c++"]]:
        if shutil.which(candidate[0]) is not None:
            return candidate
    raise ArgumentError(
        f"there is no C++17 compiler to build the {what} with: "
        f"{asked[0] if asked else 'g++, clang++ and c++'} cannot be found"
    )


def _sources(recipe: Recipe) -> list[Path]:
    """Return the sources that came with the package or, if it is editable, the repository's."""
    places = (BESIDE / f"{recipe.room}_src", BESIDE.parent / "src" / recipe.room)
    for place in places:
        found = sorted(place.glob("*.cc"))
        if found:
            return found
    raise InternalError(
        f"the sources of the {recipe.what} are neither in {places[0]} nor in {places[1]}"
    )


def _command(recipe: Recipe, sources: list[Path]) -> list[str]:
    """Return the command but for its output."""
    return [
        *_compiler(recipe.what),
        *("-O2", "-fPIC", "-shared", "-fvisibility=hidden", *recipe.flags, f"-I{get_include()}"),
        *map(str, sources),
        *recipe.link_flags,
        *(f"-L{BESIDE}", "-l:libembstore.so", f"-Wl,-rpath,{BESIDE}", "-Wl,--enable-new-dtags"),
    ]


def _digest(recipe: Recipe, command: list[str], sources: list[Path]) -> str:
    header = Path(get_include()) / "embstore" / "embstore.h"
    digest = hashlib.sha256()
    texts = [header, *sources, *sorted(sources[0].parent.glob("*.h"))]
    parts = [recipe.version, *command, *(path.read_text() for path in texts)]
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


def _cache_folder(name: str) -> Path:
    given = os.environ.get("EMBSTORE_CACHE")
    if given:
        return Path(given) / name
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "embstore" / name
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"embstore-{os.getuid()}" / name


def _compile(what: str, command: list[str], library: Path) -> None:
    """Compile to `library`, all of it or nothing."""
    handle, temporary = tempfile.mkstemp(dir=library.parent, prefix=".building-", suffix=".so")
    os.close(handle)
    try:
        done = subprocess.run(
            [*command, "-o", temporary], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise InternalError(f"the {what} do not compile:\n{done.stderr[-4000:]}")
        os.replace(temporary, library)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
