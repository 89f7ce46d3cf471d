"""explain: beside the table's candidates, the reference filter, and what evict selects."""

import argparse

import numpy as np
import pytest
from checkpoint_kit import changed_table, save_delta
from cli_kit import EXTREMES, document, extreme_table, memory_table, refused, run, save, widened
from reference.admission import Bloom

import embstore as es
from embstore import checkpoint
from embstore.cli._bloom import estimate, fixed_hash
from embstore.cli.explain import explained, key_of

DTYPES = ["float32", "float16", "bfloat16"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("7", 7),
        ("-7", -7),
        ("0x7", 7),
        ("0xFFFFFFFFFFFFFFFF", -1),
        ("0x8000000000000000", -(2**63)),
        (str(-(2**63)), -(2**63)),
        (str(2**63 - 1), 2**63 - 1),
        (str(2**64 - 1), -1),
    ],
)
def test_words_of_keys(text, key):
    assert key_of(text) == key


@pytest.mark.parametrize(
    "text", ["", "x", "1.5", "0x", "-0x1", "0x10000000000000000", str(2**64), str(-(2**63) - 1)]
)
def test_words_that_are_no_keys(text):
    with pytest.raises(argparse.ArgumentTypeError):
        key_of(text)


@pytest.mark.parametrize("dtype", DTYPES)
def test_explain_a_row(capsys, tmp_path, dtype):
    slots = (("exp_avg", 3), ("exp_avg_sq", 3))
    table = extreme_table(dtype, dim=3, slots=slots)
    table.pins = np.array([-(2**63), 12345])
    path = save(tmp_path / "c", t=table)
    rows = table.rows
    for at, key in enumerate(rows.keys.tolist()):
        found = document(capsys, "explain", path, key)
        row = found["row"]
        assert (found["key"], found["status"]) == (key, "live")
        assert found["hex"] == f"0x{key % 2**64:016x}"
        assert (row["freq"], row["step"]) == (rows.freq[at], rows.step[at])
        assert row["age"] == 40 - rows.step[at]
        assert row["values"] == widened(rows.values)[at].tolist()
        assert list(row["slots"].values()) == [
            rows.slots[at, :3].tolist(),
            rows.slots[at, 3:].tolist(),
        ]
        assert found["is_pinned"] == (key == -(2**63))
        assert (tmp_path / "c" / row["file"]).exists()
        assert (row["block"], row["generation"]) == (0, 1)
    text = run(capsys, "explain", path, -(2**63))[1]
    for words in (
        "live, pinned",
        "exp_avg_sq:",
        "the table has no eviction policy",
        "block 0 of g0",
    ):
        assert words in text


def test_explain_a_key_that_is_not_there(capsys, tmp_path):
    path = save(tmp_path / "c", t=extreme_table())
    found = document(capsys, "explain", path, 77)
    assert (found["status"], found["row"], found["eviction"]) == ("unknown", None, None)
    assert "any key is admitted when it is seen" in found["admission"]


def counter_table():
    table = es.Table(2, admission=es.CounterAdmission(4, candidate_ttl=64))
    table.find_or_insert([1, 2, 2, 3, 3, 3, 4, 4, 4, 4], step=30)
    table.find_or_insert([1], step=50)
    return table


def test_explain_candidates(capsys, tmp_path):
    table = counter_table()
    table.save(tmp_path / "c")
    pending = table.candidates()
    for key, count, epoch in zip(pending.keys, pending.counts, pending.epochs, strict=True):
        found = document(capsys, "explain", tmp_path / "c", key)
        candidate = found["candidate"]
        assert found["status"] == "pending"
        assert (candidate["count"], candidate["epoch"]) == (count, epoch)
        assert f"seen {count} times of 4; {4 - count} more to go" in found["admission"]
        # It is there until the step that is named, and gone from then on.
        for step, is_there in (
            (candidate["expires_at_step"] - 1, True),
            (candidate["expires_at_step"], False),
        ):
            with es.Table.load(tmp_path / "c") as later:
                later.find_or_insert([99], step=step)
                assert (key in later.candidates().keys) == is_there
    assert document(capsys, "explain", tmp_path / "c", 4)["status"] == "live"
    assert "seen 4 times" in document(capsys, "explain", tmp_path / "c", 55)["admission"]
    assert "forgotten from step" in run(capsys, "explain", tmp_path / "c", 2)[1]


@pytest.mark.parametrize("cell_bits", [1, 2, 4])
@pytest.mark.parametrize("n_hashes", [1, 7, 8, 9, 16])
def test_estimates_of_a_full_filter(cell_bits, n_hashes):
    random = np.random.default_rng(n_hashes)
    model = Bloom(es.BloomAdmission(2, 100))
    model.cell_bits, model.n_hashes, model.blocks = cell_bits, n_hashes, 3
    shape = (256 * 3, 512 // cell_bits)
    model.cells = np.where(random.random(shape) < 0.9, random.integers(0, 2**cell_bits, shape), 0)
    model.cells[random.random(shape) < 0.7] = 2**cell_bits - 1
    keys = random.integers(-(2**63), 2**63, 500)
    data = [model.partition_bytes(partition) for partition in range(256)]
    found = [
        estimate(key, data[fixed_hash(key % 2**64) >> 56], cell_bits, n_hashes)
        for key in keys.tolist()
    ]
    assert found == model.counts_before(keys).tolist()
    assert len(set(found)) > 1


@pytest.mark.parametrize("min_count", [2, 4, 16])
def test_explain_the_bloom_filter(capsys, tmp_path, min_count):
    policy = es.BloomAdmission(min_count, capacity=3000, fpr=0.05)
    table = es.Table(2, admission=policy)
    random = np.random.default_rng(min_count)
    for step in range(3):
        table.find_or_insert(random.integers(-2000, 2000, 3000), step=step)
    table.save(tmp_path / "c")
    model = Bloom(policy)
    with checkpoint.load_tables(tmp_path / "c") as loaded:
        (saved,) = loaded.tables.values()
        data = np.concatenate(list(saved.bloom())).reshape(-1, 64)
        shifts = np.arange(0, 8, policy.cell_bits, dtype=np.uint8)
        cells = data[:, :, None] >> shifts & np.uint8(2**policy.cell_bits - 1)
        model.cells = cells.reshape(len(data), -1).astype(np.int64)
        keys = np.concatenate([random.integers(-3000, 3000, 200), EXTREMES]).astype(np.int64)
        estimates = model.counts_before(keys)
        assert len(set(estimates.tolist())) > 1
        for key, estimate in zip(keys.tolist(), estimates.tolist(), strict=True):
            found = explained(saved, key)
            assert found["bloom"]["estimate"] == estimate
            if found["status"] == "unknown":
                assert f"{max(0, min_count - estimate)} more to go" in found["admission"]
    assert "bloom filter: estimate" in run(capsys, "explain", tmp_path / "c", -5)[1]


POLICIES = [
    es.StepEviction(20),
    es.L2Eviction(0.02, min_age=10),
    es.FrequencyEviction(3, min_age=5),
    (es.StepEviction(25) | es.L2Eviction(0.015, min_age=3)) & es.FrequencyEviction(4, min_age=0),
    es.StepEviction(25) | es.CapacityEviction(),
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_explain_what_would_be_evicted(capsys, tmp_path, policy, dtype):
    table = es.Table(3, dtype=dtype, eviction=policy, max_rows=10_000)
    random = np.random.default_rng(0)
    for step in range(40):
        table.find_or_insert(random.zipf(1.5, 20), step=step)
    table.pin([1])
    report = table.evict(dry_run=True, return_rows=True)
    table.save(tmp_path / "c")
    goes = set(report.rows.keys.tolist())
    (rows,) = table.export()
    assert 0 < len(goes) < len(rows)
    with checkpoint.load_tables(tmp_path / "c") as loaded:
        (saved,) = loaded.tables.values()
        for key in rows.keys.tolist():
            assert explained(saved, key)["eviction"]["would_evict"] == (key in goes), key
    key = goes.pop()
    found = document(capsys, "explain", tmp_path / "c", key)["eviction"]
    assert found["selects"] is True
    text = run(capsys, "explain", tmp_path / "c", key)[1]
    assert "it would be evicted" in text
    assert "evicts: " in text


def test_how_far_a_row_is_from_the_threshold(capsys, tmp_path):
    table = es.Table(1, eviction=es.StepEviction(10), initializer=es.Constant(2.0))
    table.find_or_insert([7], step=0)
    table.find_or_insert([8], step=13)
    table.save(tmp_path / "c")
    (condition,) = document(capsys, "explain", tmp_path / "c", 7)["eviction"]["conditions"]
    assert condition == {
        "quantity": "age",
        "value": 13,
        "sign": ">",
        "threshold": 10,
        "holds": True,
        "distance": 3,
    }
    assert "age 13 > 10 by 3" in run(capsys, "explain", tmp_path / "c", 7)[1]
    assert "age 0 > 10 is not so, by 10" in run(capsys, "explain", tmp_path / "c", 8)[1]


def test_explain_reads_only_the_files_of_the_partition(capsys, tmp_path, small_blocks):
    table = memory_table(600, 60, bloom_blocks=1)
    path = save(tmp_path / "c", t=table)
    key = int(table.rows.keys[0])
    mine = document(capsys, "explain", path, key)["row"]["file"]
    names = [file["name"] for file in checkpoint.inspect(path)["files"] if file["kind"] == "rows"]
    assert len(names) > 3
    for name in set(names) - {mine}:
        file = tmp_path / "c" / name
        file.write_bytes(bytes(len(file.read_bytes())))
    assert document(capsys, "explain", path, key)["status"] == "live"
    (tmp_path / "c" / mine).write_bytes(bytes((tmp_path / "c" / mine).stat().st_size))
    assert "checksum" in refused(capsys, "explain", path, key)


def test_explain_a_row_of_a_delta(capsys, tmp_path):
    table = memory_table(200, 5)
    first = checkpoint.save_tables(tmp_path / "c", {"t": table})
    later, changes = changed_table(table, 40, 20, np.random.default_rng(0))
    save_delta(tmp_path / "c", {"t": changes}, first.digest)
    written = set(changes.rows.keys.tolist())
    for key in later.rows.keys[::11].tolist():
        found = document(capsys, "explain", tmp_path / "c", key)
        assert found["row"]["generation"] == (2 if key in written else 1)
        at = int(np.flatnonzero(later.rows.keys == key)[0])
        assert found["row"]["values"] == later.rows.values[at].tolist()
    gone = int(changes.deleted[0])
    assert document(capsys, "explain", tmp_path / "c", gone)["status"] == "unknown"
