"""The command line: what it prints and writes, and that wrong input is one line and code 2."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embstore
from embstore.cli import main
from embstore.cli._report import comparison, table

FEATURES = ["--label", "label", "--features", "user,item", "--cross", "user*item"]
SMALL = ["--dim", "4", "--batch-size", "100", "--quiet"]


def write_clicks(path, n_rows=2000):
    random = np.random.default_rng(0)
    user, item = random.integers(0, 60, n_rows), random.integers(0, 400, n_rows)
    odds = np.where(user % 2 == item % 2, 0.8, 0.2)
    columns = {
        "user": user,
        "item": item,
        "price": random.random(n_rows),
        "time": pa.array(np.arange(n_rows), pa.timestamp("s")),
        "rating": random.integers(1, 6, n_rows),
        "tags": [[int(i)] for i in item],
        "maybe": [None, *user[1:].tolist()],
        "label": (random.random(n_rows) < odds).astype(np.int8),
    }
    pq.write_table(pa.table(columns), path)
    return str(path)


@pytest.fixture(scope="module")
def clicks(tmp_path_factory):
    return write_clicks(tmp_path_factory.mktemp("clicks") / "clicks.parquet")


@pytest.fixture(scope="module")
def checkpoint(clicks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    command = ["train", clicks, *FEATURES, *SMALL, "--stop-after", "7", "--save", str(folder)]
    assert main(command) == 0
    return folder


def run_embstore(*arguments, code="from embstore.cli import main; raise SystemExit(main())"):
    """Run the command in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


# The frame.


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert all(command in out for command in ("train", "demo", "info", "verify"))


@pytest.mark.parametrize("command", ["train", "demo", "info", "verify"])
def test_each_command_has_help(capsys, command):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert f"usage: embstore {command}" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"embstore {embstore.__version__}\n"


def test_the_frame_starts_without_heavy_imports():
    code = (
        "import sys\n"
        "from embstore.cli import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: pass\n"
        "heavy = {'pyarrow', 'tqdm', 'matplotlib', 'embstore._core', 'embstore.data'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run_embstore(code=code).stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "arguments", [[], ["nothing"], ["train"], ["train", "f.parquet"], ["train", "--label"]]
)
def test_bad_usage_is_one_line(capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "error:" in err


def test_python_m_embstore():
    process = subprocess.run(
        [sys.executable, "-m", "embstore", "--version"], check=True, capture_output=True, text=True
    )
    assert process.stdout == f"embstore {embstore.__version__}\n"


# train: what it prints and writes.


def test_train_prints_its_outcome(capsys, clicks):
    assert main(["train", clicks, *FEATURES, *SMALL]) == 0
    out = capsys.readouterr().out
    assert "all 2,000 rows in 20 batches" in out
    for line in (
        "AUC, last 60 % of the rows",
        "AUC, last 8 %",
        "rows live",
        "keys pending",
        "bytes",
    ):
        assert line in out
    assert "static" not in out


def test_train_beside_a_static_table(capsys, clicks, tmp_path):
    policies = ["--admission", "counter:2", "--evict", "step:10,l2:0.001:5", "--evict-every", "3"]
    files = ["--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png")]
    command = ["train", clicks, *FEATURES, *SMALL, *policies, *files, "--baseline", "static:1.25x"]
    assert main(command) == 0
    captured = capsys.readouterr()
    record = json.loads((tmp_path / "out.json").read_text())
    dynamic, static = record["dynamic"], record["static"]
    assert static["n_live"] == round(1.25 * dynamic["n_peak_rows"])
    assert static["layout"]["without_collisions"] == {"user": 60}
    assert f"static:{static['n_live']:,}" in captured.out
    assert f"{dynamic['auc_last_60_percent']:.4f}" in captured.out
    assert dynamic["n_evicted"] > 0
    assert record["config"]["admission"].startswith("CounterAdmission(min_count=2")
    assert record["is_complete"] is True
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    assert "plot written to" in captured.err


def test_options_of_the_baseline(capsys, clicks, tmp_path):
    base = ["train", clicks, *FEATURES, *SMALL, "--json", str(tmp_path / "o.json")]
    assert main([*base, "--baseline", "static:1000", "--baseline-exact", "item,user"]) == 0
    layout = json.loads((tmp_path / "o.json").read_text())["static"]["layout"]
    n_items = len(pq.read_table(clicks)["item"].unique())
    assert layout["without_collisions"] == {"item": n_items, "user": 60}
    assert layout["hashed"] == {"user*item": [n_items + 60, 1000]}
    split = ["--baseline-split", "item=0.25", "--baseline-exact", ""]
    assert main([*base, "--baseline", "static:1000", *split]) == 0
    layout = json.loads((tmp_path / "o.json").read_text())["static"]["layout"]
    assert layout["hashed"] == {"item": [0, 250], "user": [250, 1000], "user*item": [250, 1000]}


def test_a_progress_bar_shows_rows_and_auc(capsys, clicks):
    assert main(["train", clicks, *FEATURES, "--batch-size", "10", "--dim", "4"]) == 0
    err = capsys.readouterr().err
    assert "dynamic: 100%" in err
    assert "rows/s" in err


def test_the_bar_is_missing_without_tqdm(capsys, clicks, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert main(["train", clicks, *FEATURES, "--dim", "4"]) == 0
    assert "no progress bar without tqdm" in capsys.readouterr().err


@pytest.mark.parametrize(
    "policies",
    [
        ["--admission", "bloom:3:10000"],
        ["--admission", "counter:2:50"],
        ["--admission", "none", "--max-rows", "40"],
        ["--evict", "freq:3:5", "--evict", "step:9", "--max-rows", "50"],
        ["--features", "tags,user"],
    ],
)
def test_other_policies_and_lists(clicks, policies):
    assert main(["train", clicks, *FEATURES, *SMALL, *policies]) == 0


def test_save_and_resume_from_the_command_line(capsys, clicks, tmp_path):
    job = ["train", clicks, *FEATURES, *SMALL, "--admission", "counter:2", "--evict", "step:5"]
    straight, parts = tmp_path / "straight.json", tmp_path / "parts.json"
    assert main([*job, "--json", str(straight)]) == 0
    saved = str(tmp_path / "checkpoint")
    assert main([*job, "--stop-after", "6", "--save", saved, "--save-every", "2"]) == 0
    assert "600 of 2,000 rows in 6 batches" in capsys.readouterr().out
    assert main([*job, "--resume", saved, "--save", saved, "--json", str(parts)]) == 0
    assert "600 of them before this run" in capsys.readouterr().out
    one, other = (json.loads(path.read_text())["dynamic"] for path in (straight, parts))
    for record in (one, other):
        del record["rows_per_s"]
        del record["nbytes"]
    assert one == other
    assert main([*job, "--resume", saved]) == 0  # at the end: prints, trains nothing
    assert "all 2,000 rows in 20 batches" in capsys.readouterr().out


# train: what is wrong with the input.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--label", "clicked"], "no column 'clicked'; it has 'user', 'item'"),
        (["--features", "user,shop"], "no column 'shop'"),
        (["--label", "rating"], "the label 'rating' is"),
        (["--label", "price"], "the label 'price' is"),
        (["--label", "tags"], "a column of lists"),
        (["--label", "user"], "'user' is among the features"),
        (["--features", "price"], "'price' is float64: cut it into integer bins"),
        (["--features", "time"], "timestamp[ms]: cast it"),
        (["--features", "maybe"], "a null at row 0"),
        (["--cross", "user*user"], "names a column twice"),
        (["--features", "user,,item"], "names of columns"),
        (["--features", "user,user"], "given twice"),
        (["--baseline", "static:2"], "2 rows is too small"),
        (
            ["--baseline", "static:99", "--baseline-exact", "shop"],
            "'shop' of the baseline is not a feature",
        ),
        (["--baseline", "static:99", "--baseline-split", "shop=1"], "'shop' of the baseline"),
        (["--save-every", "3"], "--save-every needs --save"),
        (["--plot", "missing/out.png"], "no folder missing"),
        (["--plot", "out.gif"], "out.gif does not end in .png"),
        (["--save", "/dev/null"], "/dev/null"),
        (["--json", "missing/out.json"], "no folder missing"),
        (["--resume", "nothing-there"], "nothing-there"),
        (["--dim", "5000"], "dim"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(capsys, clicks, changes, message):
    assert main(["train", clicks, *FEATURES, *SMALL, *changes]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("embstore train: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--admission", "counter"], "counter:N[:TTL]"),
        (["--admission", "counter:x"], "'x' is not an integer >= 1"),
        (["--admission", "counter:5000"], "min_count"),
        (["--admission", "bloom:17"], "min_count"),
        (["--admission", "maybe:2"], "'maybe:2' is not none"),
        (["--evict", "step"], "step:N, l2:THRESHOLD:AGE or freq:N:AGE"),
        (["--evict", "step:-1"], "not an integer >= 0"),
        (["--evict", "l2:nan:3"], "'nan' is not a number > 0"),
        (["--evict", "step:3,what:1"], "'what:1' is not step:N"),
        (["--baseline", "static"], "static:ROWS"),
        (["--baseline", "static:0"], "not an integer >= 1"),
        (["--baseline", "static:0x"], "not a number > 0"),
        (["--baseline-split", "item"], "not a number > 0"),
        (["--batch-size", "0"], "not an integer >= 1"),
        (["--lr", "-1"], "not a number > 0"),
        (["--seed", "1.5"], "not an integer >= 0"),
    ],
)
def test_bad_options_are_one_line_and_code_2(capsys, clicks, changes, message):
    with pytest.raises(SystemExit) as exit_:
        main(["train", clicks, *FEATURES, *SMALL, *changes])
    assert exit_.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err


def test_missing_and_empty_data(capsys, tmp_path):
    assert main(["train", str(tmp_path / "no.parquet"), *FEATURES]) == 2
    assert "there is no file" in capsys.readouterr().err
    empty = {"user": [], "item": [], "label": []}
    pq.write_table(
        pa.table(empty).cast(pa.schema([(n, pa.int64()) for n in empty])), tmp_path / "e.parquet"
    )
    assert main(["train", str(tmp_path / "e.parquet"), *FEATURES]) == 2
    assert "there are no rows" in capsys.readouterr().err
    (tmp_path / "text.parquet").write_text("user,item,label\n1,2,0\n")
    assert main(["train", str(tmp_path / "text.parquet"), *FEATURES]) == 2
    assert "do not end like a Parquet file" in capsys.readouterr().err


def test_a_plot_without_matplotlib(capsys, clicks, tmp_path, monkeypatch):
    from embstore.cli import train

    monkeypatch.setattr(train, "find_spec", lambda name: None)
    assert main(["train", clicks, *FEATURES, "--plot", str(tmp_path / "o.png")]) == 2
    assert "pip install embstore[cli]" in capsys.readouterr().err


def test_resuming_another_job(capsys, clicks, checkpoint):
    command = ["train", clicks, *FEATURES, *SMALL, "--resume", str(checkpoint)]
    assert main([*command, "--dim", "8"]) == 2
    assert "trained with dim = 4, not 8" in capsys.readouterr().err


def test_an_interrupt_is_code_130(capsys, clicks, monkeypatch):
    from embstore.cli._job import Job

    def interrupt(self, batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(Job, "train", interrupt)
    assert main(["train", clicks, *FEATURES, *SMALL]) == 130
    assert "interrupted" in capsys.readouterr().err


# info and verify.


def test_info_prints_a_checkpoint(capsys, checkpoint):
    assert main(["info", str(checkpoint)]) == 0
    out = capsys.readouterr().out
    for word in ("user", "item", "user*item"):
        assert word in out
    assert main(["info", str(checkpoint), "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


def test_verify_says_that_a_checkpoint_is_sound(capsys, checkpoint):
    assert main(["verify", str(checkpoint)]) == 0
    assert capsys.readouterr().out.startswith("sound: ")
    assert main(["verify", str(checkpoint), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["is_sound"] is True


def test_verify_notices_a_flipped_bit(capsys, clicks, tmp_path):
    folder = tmp_path / "checkpoint"
    main(["train", clicks, *FEATURES, *SMALL, "--stop-after", "2", "--save", str(folder)])
    victim = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 4
    victim.write_bytes(data)
    capsys.readouterr()
    assert main(["verify", str(folder)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("embstore verify: ")
    assert main(["verify", str(folder), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["is_sound"] is False


def test_info_and_verify_of_nothing(capsys, tmp_path):
    assert main(["info", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("embstore info: error: ")
    assert main(["verify", str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err.startswith("embstore verify: ")


# demo.


@pytest.mark.slow
def test_the_demo_in_small(capfd, tmp_path):
    out = tmp_path / "kept"
    assert main(["demo", "--rows", "30000", "--quiet", "--out", str(out)]) == 0
    text = capfd.readouterr().out
    assert "predictions of process" in text
    assert "are the same to the bit" in text
    assert "rows evicted" in text
    assert (out / "clicks.parquet").exists()
    assert main(["verify", str(out / "checkpoint")]) == 0


@pytest.mark.slow
def test_the_demo_notices_a_difference(capfd, tmp_path, monkeypatch):
    from embstore.cli import demo

    monkeypatch.setattr(demo, "_digest", lambda job: "0" * 64)
    assert main(["demo", "--rows", "20000", "--quiet"]) == 1
    assert "DIFFER" in capfd.readouterr().out


# Tables of text.


def test_tables_are_aligned():
    assert table([["", "a", "bb"], ["row", "1"], ["longer", "100", "2"]]) == (
        "          a  bb\nrow       1\nlonger  100   2"
    )


def test_a_comparison_without_areas():
    from embstore.cli._job import Outcome
    from embstore.cli._tables import Sizes

    nan = float("nan")
    areas = {"auc_last_60_percent": nan, "auc_last_8_percent": nan}
    text = comparison(Outcome(0, 0.0, 0, Sizes(0, 0, 0, 0), areas), {})
    assert "nan" not in text
