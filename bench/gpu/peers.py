"""Others on the same card: torch in this process, HierarchicalKV in a program of its own.

HierarchicalKV is header-only, and nvcc builds bench/gpu/hkv/driver.cu with it. The program is kept
in build/gpu by what it was made of, so it can be built before the time on a card begins:
``python -m bench.gpu.peers --hkv PATH --arch sm_90``. It times itself, by CUDA events, and takes
turns with ours.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from bench.gpu.adapter import NotMeasured
from bench.gpu.session import N_BATCHES, Lane

ROOT = Path(__file__).resolve().parent.parent.parent
DRIVER = Path(__file__).resolve().parent / "hkv" / "driver.cu"
BUILT = ROOT / "build" / "gpu"

# ---- torch


def torch_on(clock):
    """Return torch, if it is there already and has CUDA; it is never installed for this."""
    if clock.is_emulated:
        raise NotMeasured("torch has no emulated card")
    try:
        import torch
    except ImportError:
        raise NotMeasured("torch is not installed") from None
    if not torch.cuda.is_available():
        raise NotMeasured(f"torch {torch.__version__} has no CUDA here")
    return torch


def torch_gather(session, static, n_static, dim):
    """Return torch.index_select(out=) on rows without a table."""
    torch, n, clock = torch_on(session.clock), session.scale.batch, session.clock
    weight = torch.as_tensor(static, device="cuda")
    out = torch.as_tensor(clock.empty((n, dim), np.float32), device="cuda")
    ids = torch_ids(torch, session, n, n_static)

    def call(number):
        torch.index_select(weight, 0, ids[number % N_BATCHES], out=out)

    name, each = "torch.index_select, out=", 8 + 8 * dim
    return Lane(name, call, n, "keys", each, n_calls=session.scale.n_calls)


def torch_pooled(session, filled, n_ids, offsets, each):
    """Return torch's embedding_bag on rows without a table."""
    torch, clock, dim = torch_on(session.clock), session.clock, filled.table.dim
    n_static = int(min(filled.n_rows, clock.free_bytes() * 0.5 / (4 * dim)))
    weight = torch.as_tensor(clock.filled((n_static, dim), np.float32), device="cuda")
    ids, at = torch_ids(torch, session, n_ids, n_static), torch.as_tensor(offsets, device="cuda")

    def call(number):
        with torch.no_grad():
            torch.nn.functional.embedding_bag(ids[number % N_BATCHES], weight, at[:-1], mode="sum")

    return Lane("torch embedding_bag", call, n_ids, "ids", each, n_calls=session.scale.n_calls)


def torch_ids(torch, session, n, n_static):
    """Return batches of row ids as tensors."""
    batches = (session.data.uniform(n, n_static, turn).ids for turn in range(N_BATCHES))
    return [torch.as_tensor(ids.view(np.int64), device="cuda") for ids in batches]


# ---- HierarchicalKV


def hkv_program(include, arch="native"):
    """Return the driver, built of the headers in a folder; raise where that cannot be."""
    include = Path(include)
    folder = next((p for p in (include, include / "include") if is_hkv(p)), None)
    if folder is None:
        raise NotMeasured(f"--hkv: there is no merlin_hashtable.cuh in {include}")
    digest = hashlib.sha256(DRIVER.read_bytes())
    for header in sorted(folder.rglob("*.*h*")):
        digest.update(header.read_bytes())
    program = BUILT / f"hkv-{digest.hexdigest()[:16]}"
    if program.exists():
        return program
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise NotMeasured("HierarchicalKV is built by nvcc, which is not on PATH")
    BUILT.mkdir(parents=True, exist_ok=True)
    command = [nvcc, f"-arch={arch}", "-O3", "-std=c++17", "-w", f"-I{folder}", str(DRIVER)]
    aside = program.with_suffix(".tmp")
    done = subprocess.run([*command, "-o", str(aside)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["nvcc failed"])[0]
        raise NotMeasured(f"HierarchicalKV does not build: {said[:200]}")
    aside.rename(program)
    return program


def is_hkv(folder):
    """Return whether a folder holds HierarchicalKV's headers."""
    return (folder / "merlin_hashtable.cuh").exists()


class HkvPeer:
    """The driver, with a table of `n_rows` of `n_cells` rows; capacities are powers of two."""

    def __init__(self, session, program, dim, n_rows, n_cells):
        self._session = session
        capacity = 1 << round(np.log2(n_cells))
        n = int(n_rows / n_cells * capacity)
        numbers = (capacity, dim, session.scale.batch, session.seed, n)
        self._child = subprocess.Popen(
            [str(program), *map(str, numbers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            self.shape = self._read("ready").split()[1:]  # what it has made
        except NotMeasured:
            self.close()
            raise

    def _read(self, word=""):
        """Return the next line that begins with a word, or, without one, with a number."""
        for line in self._child.stdout:
            if line.startswith("error"):
                raise NotMeasured(f"HierarchicalKV: {line.strip()}")
            if line.startswith(word) if word else line[:1].isdigit():
                return line
        raise NotMeasured("HierarchicalKV: its program has ended")

    def ask(self, line):
        """Return the nanoseconds of what a line asks for."""
        try:
            self._child.stdin.write(line + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise NotMeasured("HierarchicalKV: its program has ended") from None
        return int(self._read())

    def lane(self, verb, each):
        """Return the contender of "find", or of "find_or_insert SHARE"."""
        name, _, share = verb.partition(" ")
        n_calls = self._session.scale.n_calls if name == "find" else 1
        words = f"find {n_calls}" if name == "find" else f"insert {share}"
        call = HkvCall(self, words)
        n = self._session.scale.batch
        return Lane("HierarchicalKV", call, n, "keys", each, n_calls=n_calls, times_itself=True)

    def close(self):
        """End the program, which gives its memory back."""
        self._child.stdin.close()
        try:
            self._child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()


class HkvCall:
    """A call that the driver makes and times."""

    def __init__(self, peer, words):
        self._peer, self._words = peer, words

    def __call__(self, turn):
        self.sample_ns(turn)

    def sample_ns(self, turn):
        return self._peer.ask(f"{self._words} {turn + 10}")


def hkv_opener(session, include, arch="native"):
    """Return a function that opens HierarchicalKV at (dim, n_rows, n_cells), or says why not."""

    def opened(dim, n_rows, n_cells):
        if session.clock.is_emulated:
            raise NotMeasured("HierarchicalKV has no emulated card")
        if include is None:
            raise NotMeasured("give the folder of HierarchicalKV by --hkv PATH")
        return HkvPeer(session, hkv_program(include, arch), dim, n_rows, n_cells)

    return opened


def main(argv=None):
    """Build the driver ahead of time."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.peers", description=__doc__)
    parser.add_argument("--hkv", required=True, type=Path, help="the folder of HierarchicalKV")
    parser.add_argument("--arch", default="native", help="as for nvcc -arch=: sm_90 (native)")
    options = parser.parse_args(argv)
    try:
        print(hkv_program(options.hkv, options.arch).relative_to(ROOT))
    except NotMeasured as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
