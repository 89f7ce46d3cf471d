"""How the native ops are built and kept, and what happens where they cannot be."""

import json
import os
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed: its ops are untested")

import embstore as es  # noqa: E402
from embstore.cli import main  # noqa: E402
from embstore.tensorflow import Embedding, Optimizer, load_op, op_library, register  # noqa: E402


def needs_ops():
    if not op_library.has_op():
        pytest.skip("the native ops cannot be built here")


@pytest.fixture
def fake_compiler(tmp_path, monkeypatch):
    """A compiler that writes what it is told and counts its runs; and an empty cache."""
    script = tmp_path / "c++"
    script.write_text(
        f"#!{sys.executable}\nimport sys, time\n"
        f"open({str(tmp_path / 'runs')!r}, 'a').write('x')\ntime.sleep(0.2)\n"
        "open(sys.argv[sys.argv.index('-o') + 1], 'w').write('library')\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("EMBSTORE_CACHE", str(tmp_path / "cache"))
    return script


def test_the_ops_are_built_once_and_kept(fake_compiler, tmp_path):
    with ThreadPoolExecutor(4) as threads:
        paths = {*threads.map(lambda _: op_library.build_op(), range(4))}
    (path,) = paths
    assert Path(path).parent == tmp_path / "cache" / "tensorflow-op"
    assert Path(path).read_text() == "library"
    assert (tmp_path / "runs").read_text() == "x"
    assert {p.name for p in Path(path).parent.iterdir()} == {Path(path).name, "lock"}


def test_another_compiler_or_another_source_is_another_library(
    fake_compiler, monkeypatch, tmp_path
):
    first = op_library.build_op()
    (tmp_path / "other").symlink_to(fake_compiler)
    monkeypatch.setenv("CXX", str(tmp_path / "other"))
    second = op_library.build_op()
    folder = tmp_path / "src"
    folder.mkdir()
    (folder / "ops.cc").write_text("int x;")
    monkeypatch.setattr("embstore._build._sources", lambda recipe: [folder / "ops.cc"])
    third = op_library.build_op()
    (folder / "tables.h").write_text("int y;")
    assert len({first, second, third, op_library.build_op()}) == 4


def test_a_compiler_that_fails_leaves_nothing_and_is_quoted(fake_compiler, tmp_path):
    fake_compiler.write_text("#!/bin/sh\necho 'error: no such header' >&2\nexit 1\n")
    with pytest.raises(es.InternalError, match="no such header"):
        op_library.build_op()
    assert [p.name for p in (tmp_path / "cache" / "tensorflow-op").iterdir()] == ["lock"]


def test_the_command_prints_where_the_library_lies(fake_compiler, capsys, monkeypatch):
    assert main(["build-tf-op", "--json"]) == 0
    path = json.loads(capsys.readouterr().out)["library"]
    assert stat.S_ISREG(os.stat(path).st_mode)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["build-tf-op"]) == 2
    assert "no-such-compiler" in capsys.readouterr().err


def test_without_a_compiler_python_serves_and_says_so_once(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("embstore.tensorflow.names.has_op", op_library.has_op.__wrapped__)
    monkeypatch.setattr(op_library, "load_op", load_op.__wrapped__)
    with pytest.warns(es.EmbstoreWarning, match="no-such-compiler"):
        layer = Embedding(dim=2, initializer=es.Constant(2.0), optimizer=es.SGD(lr=1.0))
    assert layer.named.ops.__name__ == "embstore.tensorflow.fallback"
    rows = tf.function(lambda ids: layer(ids, training=True))(tf.constant([[1], [2]]))
    assert rows.shape == (2, 1, 2)
    assert rows.numpy().tolist() == [[[2, 2]], [[2, 2]]]


def test_ops_find_registered_tables_and_check_their_dim():
    needs_ops()
    ops = load_op()
    with es.Table(3, name="plain", initializer=es.Constant(4.0)) as table:
        table.find_or_insert([1], 0)
        register("by-hand", table)
        found = ops.embstore_find(tf.constant([1, 2], tf.int64), table="by-hand", dim=3)
        assert found.numpy().tolist() == [[4, 4, 4], [0, 0, 0]]
        with pytest.raises(tf.errors.InvalidArgumentError, match="dim 3, the graph was made for"):
            ops.embstore_find(tf.constant([1], tf.int64), table="by-hand", dim=2)
        with es.Table(3, name="second") as second:
            register("by-hand", second)
            assert (
                not ops.embstore_find(tf.constant([1], tf.int64), table="by-hand", dim=3)
                .numpy()
                .any()
            )
            register("by-hand", None)
        with pytest.raises(tf.errors.NotFoundError, match="by-hand"):
            ops.embstore_find(tf.constant([1], tf.int64), table="by-hand", dim=3)


def test_register_refuses_what_ops_cannot_read():
    with es.Table(2, name="taken") as table, es.Table(2, name="taken") as other:
        layer = Embedding(table)
        with pytest.raises(es.ArgumentError, match="a layer of this process"):
            register(layer.table_key, other)
        register(layer.table_key, table)
        register(layer.table_key, None)
        assert layer(tf.constant([1])).shape == (1, 2)
    with pytest.raises(es.ArgumentTypeError, match="Table"):
        register("x", "folder")
    with pytest.raises(es.ArgumentTypeError, match="name"):
        register(1, None)


def test_ops_are_neither_merged_nor_dropped_in_graphs():
    needs_ops()
    layer = Embedding(dim=2, optimizer=es.SGD(lr=1.0))

    @tf.function
    def twice(ids):
        layer(ids, training=True)  # nobody uses it
        return layer(ids, training=True) + layer(ids, training=True)

    twice(tf.constant([5]))
    assert layer.table.find([5], with_meta=True).freq.tolist() == [3]


def test_exports_and_saves_beside_ops_see_whole_states(tmp_path):
    needs_ops()
    layer = Embedding(dim=2, optimizer=es.SGD(lr=1.0), initializer=es.Constant(0.0))
    optimizer, failed, is_over = Optimizer("sgd"), [], threading.Event()

    @tf.function
    def step(ids):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(ids, training=True))
        grads = tape.gradient(loss, layer.trainable_variables)
        optimizer.apply_gradients(zip(grads, layer.trainable_variables, strict=True))

    step(tf.constant([0]))

    def read():
        try:
            while not is_over.is_set():
                blocks = [*layer.table.export()]
                assert all(len(b.keys) == len(b.values) for b in blocks)
                layer.table.save(tmp_path / "saved")
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    rng = np.random.default_rng(0)
    for _ in range(150):
        step(tf.constant(rng.integers(0, 20_000, 200)))
    is_over.set()
    thread.join()
    assert failed == []
    assert layer.table.stats()["n_train_steps"] == 151
    assert np.isfinite(layer.table.find(np.arange(100))).all()


def test_gradients_that_nobody_takes_end_in_an_error():
    needs_ops()
    ops = load_op()
    layer = Embedding(dim=2, optimizer=es.SGD(lr=1.0))
    rows, ticket = ops.embstore_lookup(
        layer.anchor.value, tf.constant([1], tf.int64), layer.named.clock.variable,
        table=layer.table_key, dim=2, fused=False,
    )  # fmt: skip
    given = {"table": layer.table_key, "dim": 2, "fused": False, "anchor": []}
    step, lr = tf.constant(0, tf.int64), tf.constant(1.0, tf.float64)
    for _ in range(4096):
        ops.embstore_settle(ticket, tf.ones_like(rows), step, lr, **given)
    with pytest.raises(tf.errors.FailedPreconditionError, match="fused=True"):
        ops.embstore_settle(ticket, tf.ones_like(rows), step, lr, **given)
    assert layer.named.ops.clear(layer.named) == 4096
    assert layer.named.ops.clear(layer.named) == 0


def test_gradients_of_rows_that_a_restore_replaced_go_to_nobody(tmp_path):
    needs_ops()
    layer = Embedding(dim=2, optimizer=es.SGD(lr=1.0), initializer=es.Constant(0.0))
    optimizer = Optimizer("sgd")

    def backward():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(tf.constant([1]), training=True))
        return tape.gradient(loss, layer.trainable_variables)

    optimizer.apply_gradients(zip(backward(), layer.trainable_variables, strict=True))
    layer.table.save(tmp_path)
    backward()
    layer.table.restore(tmp_path)
    optimizer.apply_gradients(zip(backward(), layer.trainable_variables, strict=True))
    assert layer.table.find([1]).tolist() == [[-2.0, -2.0]]


@pytest.mark.unsanitized
def test_help_and_names_need_no_tensorflow():
    code = "import sys, embstore.tensorflow as t; dir(t); print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
