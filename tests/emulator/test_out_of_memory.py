"""A call that finds no memory on the card raises, and the table is as it was."""

import numpy as np
import pytest
from contract.tools import snapshot

import embstore as es

DIM, N = 8, 300


def gradients(n=N):
    return np.random.default_rng(0).standard_normal((n, DIM)).astype(np.float32)


def calls(device):
    """Functions of a table and the ticket of its first batch, by name."""
    return {
        "apply_gradients": lambda t, b: t.apply_gradients(b, gradients(), step=2),
        "apply_gradients late": lambda t, b: t.apply_gradients(
            b, device.array_of(gradients()), step=2
        ),
        "apply_gradients of keys": lambda t, b: t.apply_gradients(
            np.arange(N) % 90, gradients(), step=2
        ),
        "find_or_insert": lambda t, b: t.find_or_insert(np.arange(400), step=2),
        "find_or_insert late": lambda t, b: t.find_or_insert(
            device.array_of(np.arange(400)), step=2
        ),
        "assign": lambda t, b: t.assign(np.arange(50, 400), gradients(350), step=2),
        "assign add": lambda t, b: t.assign(np.arange(50, 400), gradients(350), mode="add", step=2),
        "erase": lambda t, b: t.erase(np.arange(50)),
        "evict": lambda t, b: t.evict(step=10),
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("call", calls(None))
def test_a_call_without_memory_changes_nothing(emulated_device, call, dtype):
    device = emulated_device
    do = calls(device)[call]
    with es.Table(
        DIM, optimizer=es.Adam(0.01), dtype=dtype, eviction=es.StepEviction(1), device="cuda"
    ) as table:
        batch = table.find_or_insert(np.arange(N) % 100, step=1)
        before = snapshot(table)
        held = device.allocations.bytes_of(False)
        n_failed = 0
        for n_spare in range(0, 2**20, 250):
            device.memory_bytes = held + n_spare
            try:
                do(table, batch)
            except es.OutOfMemoryError:
                device.memory_bytes = None
                n_failed += 1
                assert snapshot(table) == before
            else:
                break
        device.memory_bytes = None
        assert n_failed > 1
        assert snapshot(table) != before
