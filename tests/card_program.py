"""A compact program of all verbs on a card, held to the CPU engine and the oracle.

For compute-sanitizer, under which kernels are a hundred times as slow:
``python tests/card_program.py N_KEYS N_VERBS``. Memory comes from CUDA itself and not from CuPy's
pool, so that a write beyond an allocation meets no neighbour.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import card_kit
from contract import digest
from property.program import run_program


def main(n_keys=2000, n_verbs=1500):
    """Run it; raise where the engines differ."""
    with card_kit.device_under_test() as device:
        if card_kit.is_real():
            device.cupy.cuda.set_allocator(None)
        assert digest.digest_of("cuda", 1, n_keys) == digest.digest_of("cpu", 1, n_keys)
        for seed in range(3):
            run_program(seed, n_verbs, engine="cuda")
        free = {"max_rows": None, "eviction": None, "evict_every": None}
        run_program(100, 2 * n_keys, batch_keys=n_keys, spread=n_keys, engine="cuda", **free)
    print(f"card_program: {n_keys} keys and {n_verbs} verbs are what the CPU and the oracle say")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
