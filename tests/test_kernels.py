"""Device code: what the parser of its structs takes, how cubins are kept, what compiles."""

import hashlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from embstore import DeviceError, InternalError
from embstore.engines import kernel_sources, kernels
from embstore.engines.kernel_sources import Sources, fields_of

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = Sources(ROOT / "include", ROOT / "tests" / "cpp" / "device")
ARCHS = (75, 80, 86, 89, 90, 100, 120)
HEADER = "struct TableView {\n  uint64_t* lines;  // of 128 bytes\n  uint64_t n_lines;\n};\n"
UNIT = '#include "embstore/cuda/view.h"\nEMB_KERNEL(look, TableView) {}\n'
CUBIN = b"\x7fELF" + bytes(100)


def sources_of(folder, unit=UNIT, header=HEADER):
    """Device sources of one unit and one header, written to a folder."""
    include = folder / "include" / "embstore" / "cuda"
    (folder / "src").mkdir(parents=True, exist_ok=True)
    include.mkdir(parents=True, exist_ok=True)
    (folder / "src" / "look.cu").write_text(unit)
    (include / "view.h").write_text(header)
    return Sources(folder / "include", folder / "src")


# The structs.


def test_the_fields_of_the_sample_are_found():
    assert SAMPLE.kernel_arguments() == {
        "sample_scale": {"x": "pointer", "out": "pointer", "n": "uint64_t", "by": "double"},
        "sample_blocks": {"n_blocks": "pointer", "value": "int64_t"},
    }


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("struct A { uint64_t n; };", ("n",)),
        (
            "struct A { const uint64_t* a; float *b; void * const c; const core::Config* d; };",
            "abcd",
        ),
        ("struct A { uint64_t** a; const float* const* b; unsigned_thing const* c; };", "abc"),
        ("struct A { // uint64_t gone;\n int64_t /* wide */ x; double y; };", ("x", "y")),
        ("#define struct_A struct A { int x; };\nstruct A\n{\n  double x;\n}\n;", ("x",)),
        ("struct A;\nstruct AB { int x; };\nstruct A { double y; };", ("y",)),
        ("EMB_FN void f(struct A a);\nstruct A* g();\nstruct A { double y; };", ("y",)),
        ("struct B { uint64_t a; };", None),
    ],
)
def test_structs_of_eight_byte_fields_are_read(text, fields):
    found = fields_of("A", text, "x.h")
    assert (None if found is None else tuple(found)) == (None if fields is None else tuple(fields))


@pytest.mark.parametrize(
    "body",
    [
        *(
            "",
            "uint32_t n;",
            "float x;",
            "int n;",
            "bool is_on;",
            "uint64_t a, b;",
            "uint64_t a[2];",
        ),
        *(
            "float* a, b;",
            "float* a[2];",
            "uint64_t n = 0;",
            "uint64_t n : 3;",
            "Pair p;",
            "float& x;",
        ),
        *("uint64_t n", "uint64_t n; uint32_t m", "void (*f)(int);", "static uint64_t n;"),
        *("uint64_t n; uint64_t m() const { return n; };", "struct { uint64_t n; } in;"),
        *("unsigned long long n;", "uint64_t;", "const uint64_t n;", ";", "uint64_t a;;"),
    ],
)
def test_any_other_field_is_an_error_that_names_file_and_struct(body):
    with pytest.raises(InternalError, match=r"x\.h: struct A"):
        fields_of("A", f"struct A {{ {body} }};", "x.h")


@pytest.mark.parametrize(
    "text",
    [
        "struct A { uint64_t n; }; struct A { uint64_t n; };",
        "struct A : B { uint64_t n; };",
        "struct A { uint64_t n; } instance;",
    ],
)
def test_any_other_struct_is_an_error(text):
    with pytest.raises(InternalError, match=r"x\.h: struct A"):
        fields_of("A", text, "x.h")


def test_a_struct_is_found_in_the_headers(tmp_path):
    sources = sources_of(tmp_path)
    fields = {"lines": "pointer", "n_lines": "uint64_t"}
    assert list(sources.struct_fields("TableView").items()) == list(fields.items())
    assert sources.kernel_arguments() == {"look": fields}
    with pytest.raises(InternalError, match="struct Nothing is in no header"):
        sources.struct_fields("Nothing")


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ("EMB_KERNEL(f, TableView) {} EMB_KERNEL(f, TableView) {}", "another kernel named f"),
        ("EMB_KERNEL(f) {}", "must name two things"),
        ("EMB_KERNEL(f, FArgs) {}", "struct FArgs is in no header"),
    ],
)
def test_kernels_that_are_not_clear_are_errors(unit, message, tmp_path):
    with pytest.raises(InternalError, match=message):
        sources_of(tmp_path, unit).kernel_arguments()


def test_the_installed_kernels_have_arguments():
    for kernel in kernel_sources.installed_sources().kernel_arguments():
        assert kernels.argument_fields(kernel)
    with pytest.raises(InternalError, match="no kernel named 'nothing'"):
        kernels.argument_fields("nothing")


# The cache; a stand-in compiles, so that this runs where CuPy is not installed.


@pytest.fixture
def compilations(tmp_path, monkeypatch):
    """The names of the units that were compiled, in order."""
    done = []

    def stand_in(sources, unit, options):
        done.append(unit.name)
        return kernels.Compiled(CUBIN + unit.read_bytes(), "")

    monkeypatch.setattr(kernels, "compiled", stand_in)
    monkeypatch.setattr(kernels, "nvrtc_version", lambda: (13, 5))
    monkeypatch.setattr(kernels, "target_of", lambda arch: arch)
    monkeypatch.setenv("EMBSTORE_CACHE", str(tmp_path / "cache"))
    return done


def test_a_cubin_is_compiled_once(tmp_path, compilations):
    sources = sources_of(tmp_path)
    first = kernels.cubins(90, sources)
    assert first == {"look": CUBIN + UNIT.encode()} == kernels.cubins(90, sources)
    assert compilations == ["look.cu"]
    (path,) = (tmp_path / "cache").iterdir()
    assert path.name.startswith("look-sm_90-")
    assert path.read_bytes() == first["look"] + hashlib.sha256(first["look"]).digest()


def test_a_change_of_anything_compiles_again(tmp_path, compilations, monkeypatch):
    sources = sources_of(tmp_path)
    changes = [
        lambda: None,
        lambda: sources_of(tmp_path, header=HEADER + "// more\n"),
        lambda: sources_of(tmp_path, unit=UNIT + "// more\n"),
        lambda: (tmp_path / "include" / "embstore" / "cuda" / "new.h").write_text(""),
        lambda: monkeypatch.setattr(kernels, "OPTIONS", (*kernels.OPTIONS, "-DX")),
        lambda: monkeypatch.setattr(kernels, "nvrtc_version", lambda: (13, 6)),
    ]
    for n, change in enumerate(changes, 1):
        change()
        kernels.cubins(90, sources)
        kernels.cubins(90, sources)
        assert len(compilations) == n
    kernels.cubins(80, sources)
    assert len(compilations) == len(changes) + 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:10],
        lambda data: data[:50] + b"x" + data[51:],
        lambda data: data + b"x",
        lambda data: hashlib.sha256(b"").digest(),
    ],
)
def test_a_damaged_cubin_is_made_again(damage, tmp_path, compilations):
    sources = sources_of(tmp_path)
    first = kernels.cubins(90, sources)
    (path,) = (tmp_path / "cache").iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert kernels.cubins(90, sources) == first
    assert path.read_bytes() == whole
    assert len(compilations) == 2


def test_a_cache_that_takes_no_file_is_done_without(tmp_path, compilations, monkeypatch):
    sources = sources_of(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EMBSTORE_CACHE", str(tmp_path / "file" / "below"))
    assert kernels.cubins(90, sources) == kernels.cubins(90, sources)
    assert len(compilations) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder")
def test_a_read_only_cache_is_done_without(tmp_path, compilations):
    (tmp_path / "cache").mkdir(mode=0o500)
    sources = sources_of(tmp_path)
    assert kernels.cubins(90, sources) == kernels.cubins(90, sources)
    assert len(compilations) == 2


def test_a_full_disk_is_done_without_and_leaves_no_file(tmp_path, compilations, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kernels.os, "replace", full)
    assert kernels.cubins(90, sources_of(tmp_path))["look"].startswith(CUBIN)
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_cache_lies_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("EMBSTORE_CACHE", "/a")
    assert kernels.cache_folder() == Path("/a")
    monkeypatch.setenv("EMBSTORE_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert kernels.cache_folder() == Path("/b/embstore/cubin")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert kernels.cache_folder() == Path("/c/.cache/embstore/cubin")


PROCESS = """
import sys, time
from pathlib import Path
from embstore.engines import kernels
kernels.nvrtc_version, kernels.target_of = lambda: (13, 5), lambda arch: arch
kernels.compiled = lambda sources, unit, options: time.sleep(0.2) or kernels.Compiled(
    b"\\x7fELF" + bytes(1 << 22), "")
sources = kernels.Sources(Path(sys.argv[1]) / "include", Path(sys.argv[1]) / "src")
print(len(kernels.cubins(90, sources)["look"]))
"""


def test_two_processes_may_make_the_same_cubin(tmp_path):
    sources_of(tmp_path)
    environment = os.environ | {"EMBSTORE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(2)
    ]
    assert [process.communicate()[0] for process in both] == [f"{(1 << 22) + 4}\n"] * 2
    (path,) = (tmp_path / "cache").iterdir()
    assert kernels.kept(path) is not None


# The compilers.


@pytest.fixture
def nvrtc():
    """NVRTC as CuPy has it."""
    pytest.importorskip("cupy", reason="CuPy is not installed: NVRTC is not tried")
    try:
        return kernels.nvrtc_version()
    except DeviceError as error:
        pytest.skip(f"NVRTC is not tried: {error}")


def nvcc_resources(arch, sources, folder):
    """What each kernel takes, by nvcc, which takes one core a unit."""

    def compile_unit(unit):
        command = [
            *("nvcc", "-cubin", f"-arch=sm_{arch}", "-std=c++17", "--fmad=false", "-Xptxas", "-v"),
            *("-I", str(sources.include), "-o", str(folder / f"{unit.stem}.cubin"), str(unit)),
        ]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    found = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for done in pool.map(compile_unit, sources.units()):
            assert done.returncode == 0, done.stderr
            found |= kernels.resources_in(done.stderr)
    return found


@pytest.mark.unsanitized
@pytest.mark.parametrize("folder", ["tests/cpp/device", "src/cuda"])
@pytest.mark.parametrize("arch", ARCHS)
def test_every_kernel_compiles_and_spills_nothing(arch, folder, tmp_path):
    sources = Sources(ROOT / "include", ROOT / folder)
    assert sources.units()
    try:
        version = kernels.nvrtc_version()
    except DeviceError:
        if shutil.which("nvcc") is None:
            pytest.skip("neither NVRTC through CuPy nor nvcc is installed: nothing was compiled")
        compiler, found = "nvcc", nvcc_resources(arch, sources, tmp_path)
    else:
        if kernels.target_of(arch) != arch:
            pytest.skip(f"NVRTC {version} does not compile for sm_{arch}")
        compiler, found = f"NVRTC {version[0]}.{version[1]}", kernels.resources(arch, sources)
    expected = set(sources.kernel_arguments())
    if folder == "src/cuda":  # whose macro makes two of each
        expected |= {f"{name}_of_many" for name in expected}
    assert set(found) == expected
    for name, used in sorted(found.items()):
        print(
            f"sm_{arch} {compiler} {name}: {used.registers} registers, {used.spill_bytes} bytes "
            f"spilled, {used.stack_bytes} bytes of stack"
        )
    assert {name: used for name, used in found.items() if used.spill_bytes} == {}


def test_a_cubin_of_nvrtc_is_a_whole_elf_file(nvrtc, monkeypatch, tmp_path):
    monkeypatch.setenv("EMBSTORE_CACHE", str(tmp_path))
    cubin = kernels.cubins(90, SAMPLE)["sample"]
    assert kernels.cubins(90, SAMPLE)["sample"] == cubin
    (path,) = tmp_path.iterdir()
    assert kernels.kept(path) == cubin

    def field(at, n_bytes):
        return int.from_bytes(cubin[at : at + n_bytes], "little")

    ends = [field(32, 8) + field(54, 2) * field(56, 2), field(40, 8) + field(58, 2) * field(60, 2)]
    assert len(cubin) == max(ends)


def test_nvrtc_neither_contracts_nor_flushes(nvrtc):
    from cupy_backends.cuda.libs import nvrtc as library

    (unit,) = SAMPLE.units()
    program = library.createProgram(unit.read_text(), unit.name, (), ())
    options = (*kernels.OPTIONS, "--gpu-architecture=compute_90", f"-I{SAMPLE.include}")
    library.compileProgram(program, options)
    ptx = library.getPTX(program).decode()
    library.destroyProgram(program)
    assert "mul.rn.f32" in ptx
    assert "add.rn.f32" in ptx
    assert "fma" not in ptx
    assert "ftz" not in ptx


def test_the_report_of_ptxas_is_read():
    log = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90'
ptxas info    : Function properties for first
    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Function properties for _Z6calledv
    16 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 40 bytes cumulative stack size
ptxas info    : Compiling entry function 'second' for 'sm_90'
ptxas info    : Function properties for second
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers
"""
    assert kernels.resources_in(log) == {"first": (255, 16, 24), "second": (12, 0, 0)}


def test_an_error_in_device_code_shows_what_nvrtc_says(nvrtc, tmp_path, monkeypatch):
    monkeypatch.setenv("EMBSTORE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        InternalError, match=r"(?s)look\.cu does not compile.*look\.cu\(1\).*nonsense"
    ):
        kernels.cubins(90, sources_of(tmp_path, unit="nonsense here;"))
    assert not (tmp_path / "cache").exists()


def test_an_unknown_architecture_is_a_clear_error(nvrtc):
    assert kernels.target_of(90) == 90
    assert kernels.target_of(99) == 90
    with pytest.raises(DeviceError, match=r"not for 3\.0"):
        kernels.target_of(30)


def test_without_cupy_the_error_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy_backends", None)
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs", None)
    with pytest.raises(DeviceError, match=r"cannot be compiled: .*cupy_backends"):
        kernels.nvrtc_version()
