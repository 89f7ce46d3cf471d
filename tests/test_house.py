"""The rooms of the house: who may import whom, what the package exports, what it may not hold."""

import ast
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import embstore

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "embstore"
HEADERS = ROOT / "include" / "embstore"
BUILT = Path(embstore.__file__).parent

# A room is a module or folder directly under embstore/. Each may import itself and the rooms named
# here; "public" stands for what a user can name: embstore.__all__ and the rooms in PUBLIC_ROOMS.
PUBLIC_ROOMS = {"checkpoint", "data", "errors", "serving"}
ROOMS = {
    "_version": set(),
    "_config": {"_version", "_core"},
    "errors": set(),
    "_build": {"_config", "errors"},
    "_adapters": {"public"},
    "_prefetch": set(),
    "_workers": set(),
    "policies": {"errors"},
    "engines": {"policies", "errors", "_core"},
    "checkpoint": {"policies", "errors", "_version", "_core", "_prefetch", "_workers"},
    "data": {"errors", "_prefetch"},
    "table": {"engines", "policies", "checkpoint", "errors"},
    "store": {"engines", "policies", "checkpoint", "errors", "table"},
    "__init__": {
        *("_version", "_config", "_core", "errors", "policies", "engines", "checkpoint"),
        *("table", "store"),
    },
    "__main__": {"cli"},
    "cli": {"public", "torch", "tensorflow", "jax"},  # lazily: files of PyTorch, ops of the others
    "serving": {"public"},
    "torch": {"public", "_adapters"},
    "jax": {"public", "_adapters", "_build"},
    "tensorflow": {"public", "_adapters", "_build", "_keras"},
    "_keras": {"public", "_adapters"},
    "keras": {"public", "_adapters", "_keras", "torch", "tensorflow", "jax"},
}

# Who may import what is not needed to import embstore.
FOREIGN = {
    "torch": {"torch", "keras"},
    "tensorflow": {"tensorflow"},
    "jax": {"jax", "keras"},
    "keras": {"keras", "_keras", "tensorflow"},
    "cupy": {"engines/cuda", "engines/kernels", "engines/arrays"},
    "cupy_backends": {"engines/cuda", "engines/kernels"},
    "ml_dtypes": {"engines/arrays"},
    "tqdm": {"cli"},
    "matplotlib": {"cli"},
}

RUNS_CODE = re.compile(
    r"^\s*c?import (pickle|marshal|shelve|yaml)|^\s*from (pickle|marshal|shelve|yaml)\b"
    r"|(?<![.\w])(eval|exec)\(|allow_pickle\s*=\s*True|\b(np|numpy)\.load\("
    r"|\btorch\.load\((?!.*weights_only=True)",
    re.MULTILINE,
)


# Other doors to the same: what is built, imported or unpickled by a name that came from somewhere.
HIDES_CODE = re.compile(
    r"^\s*(import|from) (dill|cloudpickle|joblib|jsonpickle|multiprocessing|code|runpy|imp)\b"
    r"|(?<![.\w])(compile|__import__)\(|\b(read_pickle|to_pickle|load_module|exec_module)\("
    r"|\ballow_pickle\b(?!\s*=\s*False)|\bweights_only\s*=\s*(?!True\b)|\.(deserialize|Unpickler|CDLL)\b",
    re.MULTILINE,
)


def python_files():
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    """The path of a module under embstore/, without its suffix: `engines/cpu`."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def imports_of(path):
    """Yield (line, module, name or None, whether at the top level) for each import of a file."""
    tree = ast.parse(path.read_text())
    is_lazy = set()
    for node in ast.walk(tree):
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if is_function or is_for_types:
            is_lazy.update(ast.walk(node))
    package = ["embstore", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, None, node not in is_lazy
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                yield node.lineno, module, alias.name, node not in is_lazy


def target_of(module, name):
    """The path under embstore/ that an import reaches; "" for names of embstore itself."""
    inner = module.split(".")[1:]
    if name is not None:
        below = PACKAGE.joinpath(*inner, name)
        if below.is_dir() or below.with_suffix(".py").exists() or name == "_core":
            inner = [*inner, name]
    return "/".join(inner)


def test_each_room_imports_only_the_rooms_below_it():
    faults = []
    for path in python_files():
        room = name_of(path).partition("/")[0]
        assert room in ROOMS, f"embstore/{room} is in no room of DESIGN: give it one in ROOMS"
        for line, module, name, _ in imports_of(path):
            if module.partition(".")[0] != "embstore":
                continue
            target = target_of(module, name).partition("/")[0]
            if target == "":
                is_allowed = "public" in ROOMS[room] and (name is None or name in embstore.__all__)
            else:
                is_public = "public" in ROOMS[room] and target in PUBLIC_ROOMS
                is_allowed = target == room or target in ROOMS[room] or is_public
            if not is_allowed:
                what = f"{module}.{name}" if name else module
                faults.append(f"{path.relative_to(ROOT)}:{line}: {room} may not import {what}")
    assert not faults, "\n".join(faults)


def test_engines_are_imported_lazily_and_do_not_know_each_other():
    faults = []
    for path in python_files():
        own = name_of(path)
        for line, module, name, is_top_level in imports_of(path):
            target = target_of(module, name) if module.startswith("embstore") else ""
            for engine in ("engines/cpu", "engines/cuda"):
                reaches = target == engine or target.startswith(f"{engine}/")
                is_own = own == engine or own.startswith(f"{engine}/")
                is_twin = own.startswith(("engines/cpu", "engines/cuda")) and not is_own
                if reaches and not is_own and (is_top_level or is_twin):
                    faults.append(f"{path.relative_to(ROOT)}:{line}: imports {engine}")
    assert not faults, "\n".join(faults)


def test_frameworks_are_imported_only_in_their_rooms():
    faults = []
    for path in python_files():
        own = name_of(path)
        for line, module, _, _ in imports_of(path):
            top = module.partition(".")[0]
            rooms = FOREIGN.get(top)
            if rooms is not None and not any(own == r or own.startswith(f"{r}/") for r in rooms):
                faults.append(f"{path.relative_to(ROOT)}:{line}: only {sorted(rooms)} import {top}")
    assert not faults, "\n".join(faults)


def test_import_embstore_imports_no_framework():
    code = "import sys, json, embstore; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(json.loads(done.stdout)) & set(FOREIGN)


INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
OF_A_COMPILER = re.compile(
    r"__(GNUC|clang|CUDACC|NVCC|CUDACC_RTC|CUDA_ARCH)__|_MSC_VER|__has_(builtin|attribute)"
)


def room_of_header(path, included):
    """The folder (or file) right under include/embstore/ that holds what `path` includes."""
    beside, below = path.parent / included, ROOT / "include" / included
    found = below if below.exists() else beside
    assert found.exists(), f"{path.relative_to(ROOT)} includes {included}, which does not exist"
    return found.resolve().relative_to(HEADERS).parts[0]


@pytest.mark.parametrize(
    ("room", "may_include"),
    [
        ("core", {"core"}),
        ("cpu", {"core", "cpu", "embstore.h"}),
        ("cuda", {"core", "cuda", "embstore.h"}),
    ],
)
def test_headers_include_only_the_rooms_below_them(room, may_include):
    headers = sorted((HEADERS / room).rglob("*.h"))
    if not headers:
        pytest.skip(f"there is no include/embstore/{room} yet")
    faults = []
    for path in headers:
        text = path.read_text()
        for bracket, included in INCLUDE.findall(text):
            if bracket == '"':
                is_allowed = room_of_header(path, included) in may_include
            else:
                is_allowed = room != "core" or path.name == "portable.h"
            if not is_allowed:
                faults.append(f"{path.relative_to(ROOT)} may not include {included}")
        if room == "core" and path.name != "portable.h" and OF_A_COMPILER.search(text):
            faults.append(f"{path.relative_to(ROOT)} asks for the compiler; portable.h alone may")
    assert not faults, "\n".join(faults)


# What DESIGN names in both engines, and what one of them has alone: each with its reason.
TWINS = {
    *("arena.h", "dedup.h", "evict.h", "gather.h", "index.h", "table.h", "transfer.h", "update.h"),
    *("gradients.h", "insert.h", "order.h", "pooling.h", "snapshot.h"),
}
OF_CUDA_ALONE = {
    "placement.h",  # hot rows go to the card, cold ones to the host; a CPU table has one memory
    "simt.h",  # threads, as thread_pool.h
    "row_bits.h",  # sets of rows and histograms; the CPU walks them in rows.h and evict.h
    "cache.h",  # the approximate CacheEviction, which the CPU refuses
    "upkeep.h",  # what is due at a step: kernels; the CPU's loops stand in insert.h
}


def test_twins_have_the_same_file_names():
    """Each header of the CUDA engine has the CPU's of the same name beside it, or a reason."""
    cpu, cuda = ({p.name for p in (HEADERS / twin).glob("*.h")} for twin in ("cpu", "cuda"))
    assert cuda - OF_CUDA_ALONE == TWINS
    assert cpu >= TWINS


def test_only_the_binding_knows_python():
    sources = [p for d in ("include", "src") for p in (ROOT / d).rglob("*") if p.is_file()]
    knowing = [p for p in sources if re.search(r"Python\.h|cimport|numpy/", p.read_text())]
    assert [p.name for p in knowing if p.suffix not in {".pyx", ".pxd", ".pxi"}] == []


def test_nothing_runs_code_from_data():
    sources = [*python_files(), *(ROOT / "src").glob("*.py[xi]")]
    faults = [
        f"{path.relative_to(ROOT)}: {match.group().strip()}"
        for path in sources
        for match in RUNS_CODE.finditer(path.read_text())
    ]
    assert not faults, "\n".join(faults)


def test_nothing_runs_code_by_another_door():
    faults = [
        f"{path.relative_to(ROOT)}: {match.group().strip()}"
        for path in python_files()
        for match in HIDES_CODE.finditer(path.read_text())
    ]
    assert not faults, "\n".join(faults)
    for bad in (
        "import dill",
        "from multiprocessing import Queue",
        "f = compile(text, 'x', 'exec')",
        "__import__(name)",
        "pd.read_pickle(path)",
        "np.lib.format.read_array(f, allow_pickle=flag)",
        "torch.load(path, weights_only=False)",
        "pa.ipc.deserialize(x)",
    ):
        assert HIDES_CODE.search(bad) or RUNS_CODE.search(bad), bad


def test_only_the_room_of_torch_loads_by_torch():
    faults = [name_of(p) for p in python_files() if re.search(r"\btorch\.load\b", p.read_text())]
    assert [name for name in faults if not name.startswith("torch/")] == []


def test_the_library_exports_only_the_c_abi():
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is not installed")
    command = ["nm", "-D", "--defined-only", str(BUILT / "libembstore.so")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names = [line.split()[-1] for line in done.stdout.splitlines()]
    assert "es_version" in names
    assert [name for name in names if not name.startswith("es_")] == []


@pytest.mark.unsanitized
def test_a_c_program_builds_against_the_shipped_headers(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    program = tmp_path / "abi_smoke"
    flags = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    include = ["-I", embstore.get_include()]
    library = [f"-L{BUILT}", "-l:libembstore.so", f"-Wl,-rpath,{BUILT}"]
    source = ROOT / "tests" / "cpp" / "abi_smoke.c"
    subprocess.run(
        [compiler, *flags, *include, str(source), "-o", str(program), *library], check=True
    )
    done = subprocess.run([str(program)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == embstore.__version__


@pytest.mark.unsanitized
def test_a_missing_compiler_gives_one_clear_line(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext"],
        check=False,
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "needs a C++17 compiler" in done.stderr.splitlines()[-1]
    assert "apt install g++" in done.stderr.splitlines()[-1]


def test_the_version_is_the_same_everywhere():
    assert importlib.metadata.version("embstore") == embstore.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in changelog or f"## [{embstore.__version__}]" in changelog


def test_show_config_prints_what_it_returns(capsys):
    config = embstore.show_config()
    printed = capsys.readouterr().out
    for name, value in config.items():
        if name != "extras":
            assert f"{name} " in printed
            assert str(value) in printed
    assert config["extras"]["tqdm"] is True
    assert embstore.show_config(quiet=True) == config
    assert capsys.readouterr().out == ""


def test_no_file_is_longer_than_600_lines():
    suffixes = {".py", ".pyi", ".pyx", ".pxd", ".pxi", ".h", ".c", ".cpp", ".cu"}
    folders = ("embstore", "include", "src", "tests", "bench", ".ci")
    files = [p for d in folders for p in (ROOT / d).rglob("*") if p.suffix in suffixes]
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in files}
    assert {name: n for name, n in lengths.items() if n > 600} == {}
