"""Install embstore in every way, in clean environments, for each Python that this machine has.

Each row of the matrix is a fresh virtual environment: `pip install .`, `pip install -e .`, the
wheel or the sdist, with the oldest or the newest numpy. What was installed must find its headers
and device sources, train, save and load a table, and answer `embstore --help`. A Python that is
not there is reported.
"""

import glob
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.11", "3.12", "3.13")
NEWEST = ["numpy>=2"]
# The lower bounds of pyproject.toml, or the first that can be had for that Python. On 3.13 pip
# builds numpy 1.26 from source, once: some 6 minutes.
OLDEST = {
    "3.11": ["numpy==1.26.0", "pyarrow==16.1.0"],
    "3.12": ["numpy==1.26.0", "pyarrow==16.1.0"],
    "3.13": ["numpy==1.26.4", "pyarrow==18.0.0"],
}
CHECK = """
import os, embstore, embstore.data
from embstore.engines.kernels import installed_sources
config = embstore.show_config(quiet=True)
assert os.path.isfile(os.path.join(config["include"], "embstore", "embstore.h")), config
assert installed_sources().units(), installed_sources()
table = embstore.Table(dim=4, optimizer=embstore.SGD(lr=1.0))
batch = table.find_or_insert([1, 2, 1], step=0)
table.apply_gradients(batch, batch.rows * 0 + 1, step=1)
table.save("checkpoint")
saved = embstore.Table.load("checkpoint")
assert (saved.find([1, 2, 3]) == table.find([1, 2, 3])).all() and len(saved) == 2
print(config["python"], "numpy", config["numpy"], config["cpu_path"])
"""


def run(*command, cwd=ROOT):
    command = [str(c) for c in command]
    done = subprocess.run(command, check=False, cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout.strip()


def find_python(version):
    """The first interpreter of `version` that runs, has venv and the headers; or None."""
    places = [
        shutil.which(f"python{version}"),
        *sorted(glob.glob(os.path.expanduser(f"~/.pyenv/versions/{version}.*/bin/python"))),
        *sorted(glob.glob(f"/opt/python/*{version.replace('.', '')}*/bin/python")),
    ]
    probe = (
        "import ensurepip, os, sys, sysconfig, venv;"
        "assert os.path.exists(os.path.join(sysconfig.get_path('include'), 'Python.h'));"
        f"assert '%d.%d' % sys.version_info[:2] == '{version}'"
    )
    for place in filter(None, places):
        if subprocess.run([place, "-c", probe], check=False, capture_output=True).returncode == 0:
            return place
    return None


def install(python, folder, requirement, pins):
    """Install into a new environment at `folder`, check what was installed; return its report."""
    run(python, "-m", "venv", folder)
    pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    run(*pip, *requirement, *pins)
    run(folder / "bin" / "embstore", "--help", cwd=folder)
    return run(folder / "bin" / "python", "-c", CHECK, cwd=folder)


def copy_of_the_tree(folder):
    """A copy of what git tracks or would track, so that no build of this checkout is met."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in filter(lambda n: (ROOT / n).is_file(), listed):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    return folder


def ways_of(python, scratch):
    """What can be given to `pip install`, by name: the tree, and what `build` makes of it."""
    tree = copy_of_the_tree(scratch / "tree")
    tools, dist = scratch / "tools", scratch / "dist"
    run(python, "-m", "venv", tools)
    run(tools / "bin" / "python", "-m", "pip", "install", "-q", "build")
    run(tools / "bin" / "python", "-m", "build", "--outdir", dist, tree)
    return {
        "pip install .": [tree],
        "pip install -e .": ["-e", tree],
        "wheel": list(dist.glob("*.whl")),
        "sdist": list(dist.glob("*.tar.gz")),
    }


def try_version(version, python, scratch):
    """Install in each way with each set of pins, and say how it went; the number of failures."""
    n_failed = 0
    for way, requirement in ways_of(python, scratch).items():
        for pins in (OLDEST[version], NEWEST):
            row = f"Python {version}, {way:16}, {' '.join(pins)}"
            folder = scratch / "venv"
            try:
                print(f"ok      {row}: {install(python, folder, requirement, pins)}", flush=True)
            except RuntimeError as error:
                n_failed += 1
                print(f"FAILED  {row}\n{error}", flush=True)
            shutil.rmtree(folder)
    return n_failed


def main():
    n_failed = 0
    for version in sys.argv[1:] or VERSIONS:
        python = find_python(version)
        if python is None:
            print(f"SKIPPED Python {version}: no interpreter with venv and headers was found")
            continue
        with tempfile.TemporaryDirectory(prefix="embstore-installs-") as scratch:
            n_failed += try_version(version, python, Path(scratch))
    return n_failed > 0


if __name__ == "__main__":
    sys.exit(main())
