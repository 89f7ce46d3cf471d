"""Peers: engines of others, each in a virtual environment of its own under build/peers.

`python -m bench.peers [NAMES...]` makes the environments and says which work. A peer's module is
imported in its environment alone, by a `Worker`, and sees neither embstore nor our packages.
"""

import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "build" / "peers"


@dataclass(frozen=True)
class Peer:
    """An engine to compare with: what pip installs, in this order, and the module that runs it."""

    name: str
    title: str
    installs: tuple[tuple[str, ...], ...]
    module: str
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self):
        return FOLDER / self.name

    @property
    def python(self):
        return self.folder / "bin" / "python"

    @property
    def verdict(self):
        """The file in which `make` says why the peer does not work; empty where it does."""
        return self.folder / "verdict.txt"

    def why_not(self):
        """Return why the peer cannot be measured; empty where it can."""
        if not self.verdict.exists():
            return "not built: make bench-peers"
        return self.verdict.read_text().strip()


TFRA = Peer(
    name="tfra",
    title="TFRA 0.8.1",
    installs=(
        ("tensorflow-cpu==2.16.2", "tf_keras==2.16.0", "typeguard==2.13.3"),
        ("--no-deps", "tensorflow-recommenders-addons==0.8.1"),
    ),
    module="bench.peer_tfra",
    environment={"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"},
)
FBGEMM = Peer(
    name="fbgemm",
    title="FBGEMM 1.8.0",
    installs=(("torch==2.13.0", "numpy"), ("--no-deps", "fbgemm-gpu-cpu==1.8.0")),
    module="bench.peer_fbgemm",
)
TORCHREC = Peer(
    name="torchrec",
    title="TorchRec 1.8.0",
    installs=(
        ("torch==2.13.0", "numpy", "tensordict==0.13.0"),
        ("tqdm", "pyre-extensions", "lightning-utilities"),
        ("--no-deps", "torchmetrics==1.0.3", "fbgemm-gpu-cpu==1.8.0", "torchrec==1.8.0"),
    ),
    module="bench.peer_torchrec",
)
PEERS = (TFRA, FBGEMM)  # tables; beside the models of bench_torch stands TorchRec


def run(peer, *command):
    """Run a command in the peer's environment; return "" or the last line of what it said."""
    environment = os.environ | peer.environment | {"PYTHONPATH": str(FOLDER.parent.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
    return "" if done.returncode == 0 else lines[-1]


def make(peer):
    """Make the peer's environment unless it is there and works; return why it does not work."""
    if not peer.why_not():
        return ""
    print(f"{peer.title}: building {peer.folder.relative_to(FOLDER.parent.parent)}", flush=True)
    shutil.rmtree(peer.folder, ignore_errors=True)
    venv.create(peer.folder, with_pip=True)
    pip = (str(peer.python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    why = ""
    for packages in peer.installs:
        why = why or run(peer, *pip, *packages)
    why = why or run(peer, str(peer.python), "-c", f"import {peer.module}")
    peer.verdict.write_text(why + "\n")
    return why


def main(names=()):
    """Make all environments, or those of `names`; a peer that does not work is told, not raised."""
    known = {peer.name: peer for peer in (*PEERS, TORCHREC)}
    if unknown := sorted(set(names) - set(known)):
        print(f"there are no peers {unknown}; known are {[*known]}", file=sys.stderr)
        return 2
    for name in names or known:
        peer, why = known[name], make(known[name])
        print(f"{peer.title}: {'NOT AVAILABLE: ' + why if why else 'ready'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
