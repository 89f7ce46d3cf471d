"""Check what the sdist and the wheel in a folder hold: all that a user needs, and nothing else."""

import re
import sys
import tarfile
import zipfile
from pathlib import Path

FOREIGN = r"(^|/)(tests|bench|docs|build)/|\.(pyc|o)$"
WHEEL_NEEDS = (
    r"embstore/__init__\.py",
    r"embstore/py\.typed",
    r"embstore/_core\.pyi",
    r"embstore/_core\.[^/]*\.so",
    r"embstore/libembstore\.so",
    r"embstore/include/embstore/embstore\.h",
    r"embstore/include/embstore/cuda/simt\.h",
    r"embstore/cuda_src/[^/]*\.cu",
    r"embstore/tensorflow_src/[^/]*\.(cc|h)",
    r"embstore/jax_src/[^/]*\.(cc|h)",
    r"embstore-[^/]*\.dist-info/licenses/LICENSE",
    r"embstore-[^/]*\.dist-info/entry_points\.txt",
)
SDIST_NEEDS = (
    r"LICENSE",
    r"README\.md",
    r"pyproject\.toml",
    r"setup\.py",
    r"include/embstore/embstore\.h",
    r"src/_core\.pyx",
    r"src/cuda/[^/]*\.cu",
    r"src/core_buffers\.pxi",
    r"src/core_many\.pxi",
    r"src/tensorflow/[^/]*\.(cc|h)",
    r"src/jax/[^/]*\.(cc|h)",
    r"src/libembstore\.map",
    r"src/paths/baseline\.cpp",
    r"embstore/__init__\.py",
)


def faults(names, needs, unwanted):
    """Yield a line for each needed name that is missing and each unwanted one that is there."""
    for need in needs:
        if not any(re.fullmatch(need, name) for name in names):
            yield f"missing: {need}"
    yield from (f"does not belong: {name}" for name in names if re.search(unwanted, name))


def main(folder):
    (sdist,) = folder.glob("embstore-*.tar.gz")
    (wheel,) = folder.glob("embstore-*.whl")
    with tarfile.open(sdist) as archive:
        members = [m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()]
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
    found = {
        sdist.name: list(faults(members, SDIST_NEEDS, FOREIGN + r"|\.so$")),
        wheel.name: list(faults(files, WHEEL_NEEDS, FOREIGN + r"|\.(cpp|pyx|pxi|map)$")),
    }
    for name, lines in found.items():
        size = (folder / name).stat().st_size
        print(f"{name}: {size / 1e6:.2f} MB, {'; '.join(lines) or 'complete, nothing foreign'}")
    return any(found.values())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
