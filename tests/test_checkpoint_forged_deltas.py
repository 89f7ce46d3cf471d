"""Forged and damaged chains: what layers cannot be is refused, and every byte of each counts."""

import os
import random

import checkpoint_kit as kit
import independent_reader
import numpy as np
import pytest

import embstore as es
from embstore import checkpoint

pytestmark = pytest.mark.usefixtures("quick_disk")


@pytest.fixture
def chained(tmp_path):
    """A small checkpoint of two layers, of 24 rows; the second removes 3 keys and puts 6 rows."""
    table = kit.memory_table(24, 3)
    report = checkpoint.save_tables(tmp_path, {"t": table, "u": table})
    changes = changed()
    kit.save_delta(tmp_path, {"t": changes, "u": changes}, report.digest)
    return tmp_path


def changed():
    return kit.changed_table(kit.memory_table(24, 3), 6, 3, np.random.default_rng(0))[1]


def layer(i, member, value, table=0):
    """Return a function that sets a member of a layer in a manifest."""

    def change(document):
        document["tables"][table]["layers"][i][member] = value

    return change


def table(member, value):
    """Return a function that sets a member of the first table in a manifest."""

    def change(document):
        document["tables"][0][member] = value

    return change


def file(kind, of_layer, member, value):
    """Return a function that sets a member of the first file of a kind and layer in a manifest."""

    def change(document):
        files = [f for f in document["files"] if f["kind"] == kind]
        next(f for f in files if f.get("layer", 0) == of_layer)[member] = value

    return change


def without_layers(document):
    del document["tables"][0]["layers"]


def one_layer(document):
    del document["tables"][0]["layers"][1]


def swapped_layers(document):
    document["tables"][0]["layers"].reverse()


def without_feature(document):
    document["required_features"] = []


def other_chain(document):
    for each in document["tables"]:
        each["layers"][1]["generation"] = 7


FORGED = {
    "feature": (without_feature, "layers without it"),
    "features": (lambda d: d["required_features"].append("moon"), r"does not know: \['moon'\]"),
    "no layers": (without_layers, "table 0 has deleted keys and no layers"),
    "layers": (table("layers", {}), "layers is {}"),
    "layers item": (table("layers", [1, 2]), "a layer is 1"),
    "one": (one_layer, "layers has 1 of them"),
    "swapped": (swapped_layers, r"generations of layers, \[2, 1\], do not ascend"),
    "same": (layer(0, "generation", 2), "do not ascend"),
    "generation zero": (layer(0, "generation", 0), "generation is 0"),
    "generation": (layer(0, "generation", True), "generation is True"),
    "last": (layer(1, "generation", 3), "have not layers of the same generations"),
    "later": (other_chain, "have not layers of the same generations, up to this one"),
    "another": (layer(0, "generation", -1, 1), "generation is -1"),
    "rows": (layer(1, "rows", 7), "layer 1: rows is not the sum over its files, 6"),
    "base rows": (layer(0, "rows", 23), "layer 0: rows is not the sum over its files, 24"),
    "deleted": (layer(1, "deleted", 2), "layer 1: deleted is not the sum over its files, 3"),
    "base deleted": (layer(0, "deleted", 1), "the first layer has deleted keys"),
    "negative": (layer(1, "rows", -1), "rows is -1"),
    "nonfinite": (layer(1, "nonfinite_rows", 1), "nonfinite_rows is not the sum over its layers"),
    "nonfinite sum": (table("nonfinite_rows", 1), "nonfinite_rows is not the sum over its layers"),
    "step": (layer(1, "step", 41), "its last layer has not the steps of its state"),
    "step base": (layer(1, "step_base", 1), "its last layer has not the steps of its state"),
    "step order": (layer(0, "step_base", 41), "step is 40; expected an integer from 41"),
    "live few": (table("rows", 5), "rows is 5; its layers leave 6 to 30"),
    "live many": (table("rows", 31), "rows is 31; its layers leave 6 to 30"),
    "live less": (table("rows", 23), "has more rows after merging|has 24 rows after merging"),
    "live more": (table("rows", 25), "has 24 rows after merging; the manifest says 25"),
    "file layer": (file("rows", 1, "layer", 2), "layer is 2; expected an integer from 0 to 1"),
    "file negative": (file("rows", 1, "layer", -1), "layer is -1"),
    "file type": (file("rows", 1, "layer", None), "layer is None"),
    "file of base": (
        file("rows", 1, "layer", 0),
        "layer 0: rows is not the sum over its files, 30",
    ),
    "base file": (file("rows", 0, "layer", 1), "layer 0: rows is not the sum over its files, 0"),
    "deleted of base": (file("deleted", 1, "layer", 0), "layer is 0; expected an integer from 1"),
    "pins of a layer": (file("pins", 0, "layer", 1), "layer is 1; expected an integer from 0 to 0"),
    "kind": (file("deleted", 1, "kind", "pins"), "layer is 1; expected an integer from 0 to 0"),
    "kind of rows": (
        file("deleted", 1, "kind", "rows"),
        "layer 1: deleted is not the sum over its files",
    ),
}


@pytest.mark.parametrize(("change", "message"), FORGED.values(), ids=FORGED)
def test_forged_chains_are_refused(change, message, chained):
    checkpoint.verify(chained)
    kit.forge_manifest(chained, change)
    with pytest.raises(es.CheckpointError, match=message) as error:
        kit.content_of(chained)
    assert isinstance(error.value, es.CorruptCheckpointError | es.CheckpointMismatchError)
    assert str(chained) in str(error.value)


def test_a_full_checkpoint_has_no_deleted_keys(tmp_path):
    checkpoint.save_tables(tmp_path, {"t": kit.memory_table()})
    kit.forge_manifest(tmp_path, file("pins", 0, "kind", "deleted"))
    with pytest.raises(es.CorruptCheckpointError, match="table 0 has deleted keys and no layers"):
        checkpoint.verify(tmp_path)


def rows_with(**arrays):
    """Return the columns of the second layer's rows with some replaced."""
    rows = changed().rows
    parts = {name: getattr(rows, name).copy() for name in kit.ROW_NAMES}
    for name, (at, value) in arrays.items():
        parts[name][at] = value
    return list(parts.values())


def test_keys_both_deleted_and_put_in_a_layer_are_refused(chained):
    changes = changed()
    keys = kit.in_order([*changes.deleted[:-1], changes.rows.keys[2]])
    kit.forge_file(chained, "deleted", [[keys]], layer=1)
    match = rf"table 't' has key {changes.rows.keys[2]} both deleted and as a row in layer 1"
    with pytest.raises(es.CorruptCheckpointError, match=match):
        checkpoint.verify(chained)
    with pytest.raises(ValueError, match="twice in a layer"):
        independent_reader.read(chained)


def test_layers_that_cannot_be_are_refused(chained):
    deleted = kit.in_order(changed().deleted)
    for keys, message in (
        (deleted[::-1].copy(), "out of order"),
        (deleted[[0, 0, 1]], "comes twice"),
    ):
        kit.forge_file(chained, "deleted", [[keys]], layer=1)
        with pytest.raises(es.CorruptCheckpointError, match=rf"deleted.*, offset \d+.*{message}"):
            kit.content_of(chained)
    kit.forge_file(chained, "deleted", [[deleted]], layer=1)
    for columns, message in (
        (rows_with(step=(3, 41)), r"is of step 41, not of 0\.\.40"),
        (rows_with(values=(3, np.nan)), "1 rows so far have NaN"),
        (rows_with(keys=(1, changed().rows.keys[0])), "comes twice"),
    ):
        kit.forge_file(chained, "rows", [columns], layer=1)
        with pytest.raises(es.CorruptCheckpointError, match=rf"rows.*, offset \d+.*{message}"):
            kit.content_of(chained)
    kit.forge_file(chained, "rows", [rows_with()], layer=1)
    checkpoint.verify(chained)


def test_nonfinite_rows_are_counted_in_each_layer(chained):
    def change(document):
        for i, n in ((0, 1), (1, 0)):
            document["tables"][0]["layers"][i]["nonfinite_rows"] = n
        document["tables"][0]["nonfinite_rows"] = 1

    kit.forge_manifest(chained, change)
    with pytest.raises(es.CorruptCheckpointError, match=r"has 0 rows with NaN .* in layer 0"):
        kit.content_of(chained, allow_nonfinite=True)


def test_deleting_a_key_that_is_not_there_is_legal(chained):
    before = kit.content_of(chained)
    keys = kit.in_order([*changed().deleted, 1, -1, 2**63 - 1])
    kit.forge_file(chained, "deleted", [[keys]], layer=1)
    assert kit.content_of(chained) == before
    independent_reader.read(chained)


def test_each_flipped_byte_of_a_chain_is_detected(chained):
    rng = random.Random(0)
    n_flips = 0
    for name, data in kit.files_of(chained).items():
        offsets = (
            range(len(data)) if "t000-deleted" in name else range(rng.randrange(13), len(data), 13)
        )
        for offset in offsets:
            flipped = bytearray(data)
            flipped[offset] ^= rng.randint(1, 255)
            (chained / name).write_bytes(flipped)
            with pytest.raises(es.CorruptCheckpointError, match=name):
                checkpoint.verify(chained)
            n_flips += 1
        (chained / name).write_bytes(data)
    assert n_flips > 1000
    checkpoint.verify(chained)


def test_truncated_and_missing_files_of_a_chain_are_detected(chained):
    for name, data in kit.files_of(chained).items():
        for n_bytes in (len(data) - 1, len(data) // 2, 0):
            os.truncate(chained / name, n_bytes)
            with pytest.raises(es.CorruptCheckpointError, match=name):
                checkpoint.verify(chained)
        (chained / name).unlink()
        with pytest.raises(es.CheckpointError, match=name):
            checkpoint.verify(chained)
        (chained / name).write_bytes(data)
    checkpoint.verify(chained)


def test_files_of_another_layer_table_or_generation_are_detected(chained, tmp_path_factory):
    """Equal bytes at equal offsets are good in one place only: the name is in each checksum."""
    other = tmp_path_factory.mktemp("other")
    tables = {"t": kit.memory_table(24, 3)}
    tables["u"] = tables["t"]
    for _ in range(2):
        report = checkpoint.save_tables(other, tables)
    changes = changed()
    kit.save_delta(other, {"t": changes, "u": changes}, report.digest)
    ours, theirs = kit.files_of(chained), kit.files_of(other)
    assert len(ours) == len(theirs)
    n_wrong = 0
    for name, data in ours.items():
        if name == "manifest.json":
            continue
        for wrong in [*ours.values(), *theirs.values()]:
            if wrong == data:
                continue
            (chained / name).write_bytes(wrong)
            with pytest.raises(es.CorruptCheckpointError, match=name):
                checkpoint.verify(chained)
            n_wrong += 1
        (chained / name).write_bytes(data)
    twin = ours["g00000002-t000-rows-00-ff.arrow"]
    assert twin == theirs["g00000003-t000-rows-00-ff.arrow"], "names are in no byte of the data"
    (chained / "g00000003-t000-rows-00-ff.arrow").write_bytes(twin)
    rename = file("rows", 1, "name", "g00000003-t000-rows-00-ff.arrow")
    kit.forge_manifest(chained, rename)
    with pytest.raises(es.CorruptCheckpointError, match=r"g00000003.*have the checksum"):
        checkpoint.verify(chained)
    assert n_wrong > 50


def test_a_damaged_chain_is_not_compacted(chained):
    name = next(n for n in kit.files_of(chained) if n.startswith("g00000001") and "rows" in n)
    data = (chained / name).read_bytes()
    (chained / name).write_bytes(data[:-1] + b"?")
    before = kit.files_of(chained)
    with pytest.raises(es.CorruptCheckpointError, match=name):
        checkpoint.compact(chained)
    assert kit.files_of(chained) == before
