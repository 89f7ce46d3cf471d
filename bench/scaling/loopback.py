"""Processes on this machine that exchange by torch.distributed over gloo: what is measured there.

``python -m bench.scaling.loopback STORE RANK WORLD_SIZE JSON`` is one of them. It times all-to-alls
of several sizes, and whole steps of sharded training written out by embstore's own verbs; rank 0
prints the seconds as a line of JSON.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import embstore as es
from bench.keys import draw_row_ids, key_of
from bench.scaling.shares import ask
from embstore.checkpoint import shard_of

ROOT = Path(__file__).resolve().parent.parent.parent
N_WARMUPS = 2
TIMEOUT_S = 120
ASKED = np.dtype([("key", "<i8"), ("count", "<u4")])  # as the model counts: 12 bytes


class Rank:
    """One process of a step: the keys it asks for, and the rows it owns."""

    def __init__(self, rank, world_size, asked):
        import torch
        import torch.distributed as dist

        self.torch, self.dist, self.n = torch, dist, world_size
        self.rng = np.random.default_rng([asked["seed"], rank])
        self.asked = asked
        self.table = es.Table(asked["dim"], optimizer=es.Adagrad(lr=0.01), hash_seed=0)
        self.table.reserve(asked["n_rows"])
        keys = key_of(np.arange(asked["n_rows"]))
        self.table.find_or_insert(keys[shard_of(keys, world_size) == rank], step=0).close()

    def exchange(self, data, to, of, dtype):
        """Send consecutive parts of a flat array, and return what the ranks sent."""
        given = self.torch.from_numpy(np.ascontiguousarray(data))
        received = self.torch.empty(sum(of), dtype=dtype)
        self.dist.all_to_all_single(received, given, list(of), list(to))
        return received.numpy()

    def batches(self, n):
        """Return the keys of some steps."""
        a = self.asked
        return [
            key_of(draw_row_ids(self.rng, a["distribution"], a["n_rows"], a["n_ids"]))
            for _ in range(n)
        ]

    def step(self, keys, step):
        """Return the seconds of each stage of a step, but for a dense part."""
        torch, dim = self.torch, self.asked["dim"]
        times = [time.perf_counter()]
        unique, counts, to = ask(keys, self.n)
        message = np.empty(len(unique), ASKED)
        message["key"], message["count"] = unique, counts
        times.append(time.perf_counter())
        ones = [1] * self.n
        of = self.exchange(to.astype(np.int64), ones, ones, torch.int64)
        in_bytes = [ASKED.itemsize * int(n) for n in to], [ASKED.itemsize * int(n) for n in of]
        came = self.exchange(message.view(np.uint8), *in_bytes, torch.uint8).view(ASKED)
        sent, tally = np.ascontiguousarray(came["key"]), np.ascontiguousarray(came["count"])
        times.append(time.perf_counter())
        owned = self.table.find_or_insert(sent, step=step, counts=tally)
        times.append(time.perf_counter())
        wide = [dim * int(n) for n in of], [dim * int(n) for n in to]
        rows = self.exchange(owned.rows.reshape(-1), *wide, torch.float32)
        times.append(time.perf_counter())
        grads = self.exchange(rows * np.float32(1e-3), wide[1], wide[0], torch.float32)
        times.append(time.perf_counter())
        with owned:
            self.table.apply_gradients(owned, grads.reshape(-1, dim), step=step)
        times.append(time.perf_counter())
        return np.diff(times).tolist()

    def module_steps(self, batches):
        """Return the seconds of steps of `ShardedEmbedding` on these rows, and the bytes it sent.

        Its gradient is there, as in `step`; the first steps are not among the bytes.
        """
        from embstore.torch import ShardedEmbedding, optimizer

        torch, found, before = self.torch, [], {}
        module = ShardedEmbedding(self.table)
        trainer = optimizer(module)
        grads = torch.full((self.asked["n_ids"], self.asked["dim"]), 1e-3)
        for i, keys in enumerate(batches):
            if i == N_WARMUPS:
                before = module.traffic()
            self.dist.barrier()
            start = time.perf_counter()
            trainer.zero_grad()
            module(torch.from_numpy(keys)).backward(grads)
            trainer.step()
            found.append(time.perf_counter() - start)
        kinds = {k: t["sent_bytes"] - before[k]["sent_bytes"] for k, t in module.traffic().items()}
        n_steps = len(batches) - N_WARMUPS
        return found[N_WARMUPS:], {kind: n / n_steps for kind, n in kinds.items()}

    def exchange_s(self, n_bytes, rounds):
        """Return the seconds of all-to-alls in which this rank sends `n_bytes` to others."""
        part = max(1, n_bytes // max(1, self.n - 1))
        sizes = [part] * self.n
        data, found = np.ones(part * self.n, np.uint8), []
        for _ in range(rounds + N_WARMUPS):
            self.dist.barrier()
            start = time.perf_counter()
            self.exchange(data, sizes, sizes, self.torch.uint8)
            found.append(time.perf_counter() - start)
        return found[N_WARMUPS:]


def work(store, rank, world_size, asked):
    """Return what one rank measures: seconds of exchanges by bytes, and of stages by step."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    es.set_num_threads(1)
    files = dist.FileStore(store, world_size)
    dist.init_process_group("gloo", store=files, rank=rank, world_size=world_size)
    try:
        own = Rank(rank, world_size, asked)
        exchanges = {
            str(n_bytes): own.exchange_s(n_bytes, asked["rounds"]) for n_bytes in asked["sizes"]
        }
        batches = own.batches(asked["rounds"] + N_WARMUPS)
        steps = []
        for i, keys in enumerate(batches):
            dist.barrier()
            steps.append(own.step(keys, i + 1))
        module_s, sent_bytes = own.module_steps(own.batches(asked["rounds"] + N_WARMUPS))
        dist.barrier()
        return {
            "exchanges": exchanges,
            "steps": steps[N_WARMUPS:],
            "module_s": module_s,
            "sent_bytes": sent_bytes,
        }
    finally:
        dist.destroy_process_group()


def measure(world_size, asked):
    """Run `world_size` processes, and return what rank 0 found; a RuntimeError says what failed."""
    with TemporaryDirectory(prefix="embstore-") as folder:
        place = str(Path(folder) / "store")
        children = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "bench.scaling.loopback"),
                    *(place, str(rank), str(world_size), json.dumps(asked)),
                ],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(world_size)
        ]
        try:
            found = [child.communicate(timeout=TIMEOUT_S) for child in children]
        finally:
            for child in children:
                child.kill()
                child.wait()
    for child, (_, said) in zip(children, found, strict=True):
        if child.returncode:
            raise RuntimeError(f"a process on loopback failed: {said.strip().splitlines()[-1:]}")
    return json.loads(found[0][0].splitlines()[-1])


if __name__ == "__main__":
    place, rank, world_size, asked = sys.argv[1:]
    found = work(place, int(rank), int(world_size), json.loads(asked))
    if rank == "0":
        print(json.dumps(found))
