"""report: a page that stands alone, with the figures and numbers of its tables."""

import html
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from checkpoint_kit import changed_table, save_delta
from cli_kit import document, extreme_table, memory_table, refused, run, save

import embstore as es
from embstore import checkpoint
from embstore.cli._histogram import Histogram, Octaves, octave, short, short_bytes

TITLES = ["Frequency", "Norm", "Age", "Bytes on disk", "Admission and removal", "Growth"]
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Notes elements and attributes, and that every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def report(capsys, tmp_path, path, *options):
    out = tmp_path / "report.html"
    found = document(capsys, "report", path, "--out", out, "--force", *options)
    text = out.read_text()
    assert found["bytes"] == len(text.encode())
    return text, Page(text)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    random = np.random.default_rng(0)
    user = es.Table(
        4,
        name="user",
        optimizer=es.Adagrad(),
        admission=es.CounterAdmission(2, candidate_ttl=64),
        eviction=es.StepEviction(20),
        evict_every=10,
    )
    item = es.Table(3, name="item", dtype="float16", admission=es.BloomAdmission(2, 1000))
    for step in range(60):
        for table in (user, item):
            batch = table.find_or_insert(random.zipf(1.4, 100), step=step)
            if table is user:
                grads = random.normal(size=batch.rows.shape).astype(np.float32)
                table.apply_gradients(batch, grads, step=step)
    path = tmp_path_factory.mktemp("report") / "models"
    es.Store([user, item]).save(path)
    return path


def test_the_page_stands_alone(capsys, tmp_path, trained):
    text, page = report(capsys, tmp_path, trained)
    for tag in ("script", "link", "iframe", "object", "embed", "img", "image"):
        assert page.all(tag) == []
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "data", "srcset", "action"):
            assert attributes.get(name, "#")[0] == "#"
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert page.all("html") == [{"lang": "en"}]
    assert "@media print" in text


def test_the_page_holds_figures_and_numbers(capsys, tmp_path, trained):
    text, page = report(capsys, tmp_path, trained)
    figures = page.all("svg")
    assert len(figures) == 2 * 5  # each table has one generation: no growth to draw
    for figure in figures:
        assert figure["role"] == "img"
        assert len(figure["aria-label"]) > 10
        assert "width" not in figure  # as wide as the page
    for title in TITLES:
        assert text.count(f"<h3>{title}</h3>") == 2
    with checkpoint.load_tables(trained) as loaded:
        for table in loaded.tables.values():
            rows = list(table.rows())
            freq = np.sort(np.concatenate([block.freq for block in rows]))
            median = freq[-(-len(freq) // 2) - 1]
            assert f"<b>{median}</b><span>median frequency" in text
            assert f"<b>{table.n_rows:,}</b><span>rows" in text
            for name, value in table.state.items():
                assert f">{name}</th>" in text
                if isinstance(value, int):
                    assert f"<td>{value:,}</td>" in text
    labels = " ".join(figure["aria-label"] for figure in figures)
    for words in ("pending now", "evicted", "new in the filter", "values", "bloom", "live now"):
        assert words in labels
    assert "CounterAdmission(min_count=2, candidate_ttl=64)" in text


def test_one_table(capsys, tmp_path, trained):
    _, page = report(capsys, tmp_path, trained, "--table", "item")
    assert [section["aria-label"] for section in page.all("section")] == ["table item"]
    assert len(page.all("svg")) == 5
    assert "no table 'shop'" in refused(
        capsys, "report", trained, "--out", tmp_path / "x", "--table", "shop"
    )


def test_growth_over_generations_and_deltas(capsys, tmp_path):
    random = np.random.default_rng(0)
    table, path = memory_table(50, 0), tmp_path / "c"
    digest = checkpoint.save_tables(path, {"t": table}, keep_last=5).digest
    for _ in range(2):
        table, changes = changed_table(table, 30, 3, random)
        digest = save_delta(path, {"t": changes}, digest, keep_last=5).digest
    text, page = report(capsys, tmp_path, path)
    growth = [f["aria-label"] for f in page.all("svg") if f["aria-label"].startswith("growth")]
    assert len(growth) == 1
    assert growth[0].count("step 40: ") == 3
    assert f"{len(table.rows)} rows" in growth[0]
    assert "3 generations are kept" in text
    assert "2 deltas on a full save" in text
    assert "generation 3: 30 rows written, 3 removed" in text
    older, page = report(capsys, tmp_path, path, "--generation", 2)
    assert "2 generations are kept" in older
    # An older generation that is damaged does not matter.
    (path / "g00000001-manifest.json").write_text("{}")
    assert "2 generations are kept" in report(capsys, tmp_path, path)[0]


def test_names_cannot_write_html(capsys, tmp_path):
    name = "<script>alert(1)</script>\"'&$x^2$"
    text, page = report(capsys, tmp_path, save(tmp_path / "c", **{name: memory_table(9)}))
    assert page.all("script") == []
    assert html.escape(name) in text


ODD = {
    "empty": memory_table(0, 0),
    "extreme": extreme_table(),
    "one": memory_table(1, 0, slots=()),
    "bfloat16": memory_table(30, 3, dtype="bfloat16", bloom_blocks=1),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_tables(capsys, tmp_path, name):
    _, page = report(capsys, tmp_path, save(tmp_path / "c", t=ODD[name]))
    assert len(page.all("svg")) == 5


def test_no_tables_and_rows_that_are_not_numbers(capsys, tmp_path):
    assert report(capsys, tmp_path, save(tmp_path / "none"))[1].all("svg") == []
    table = memory_table(9)
    table.rows.values[3] = np.inf
    with pytest.warns(es.EmbstoreWarning):
        path = save(tmp_path / "c", t=table)
    text, _ = report(capsys, tmp_path, path)
    assert "1 rows are not finite" in text
    assert "rows with NaN or infinity" in text


def test_the_same_checkpoint_gives_the_same_page(capsys, tmp_path, trained):
    assert report(capsys, tmp_path, trained)[0] == report(capsys, tmp_path, trained)[0]


def test_a_file_is_replaced_by_force_alone(capsys, tmp_path, trained):
    out = tmp_path / "report.html"
    out.write_text("mine")
    assert "exists; --force" in refused(capsys, "report", trained, "--out", out)
    assert out.read_text() == "mine"


def test_without_matplotlib_one_line_says_how_to_get_it(capsys, tmp_path, trained, monkeypatch):
    monkeypatch.setattr("embstore.cli.report.find_spec", lambda name: None)
    err = refused(capsys, "report", trained, "--out", tmp_path / "x")
    assert "pip install embstore[cli]" in err


def test_words_of_a_report(capsys, tmp_path, trained):
    code, out, _ = run(capsys, "report", trained, "--out", tmp_path / "x.html")
    assert (code, out) == (0, f"report written to {tmp_path / 'x.html'}\n")


# Histograms.


@pytest.mark.parametrize("scale", [1e-40, 1e-3, 1.0, 1e9, 1e37])
@pytest.mark.parametrize("n_parts", [1, 7])
def test_a_histogram_of_floats(scale, n_parts):
    numbers = np.abs(np.random.default_rng(0).normal(size=5000) * scale).astype(np.float32)
    numbers[:10] = 0
    found = Histogram()
    for part in np.array_split(numbers, n_parts):
        found.add(part)
    edges, counts = found.bars()
    assert (found.n, counts.sum(), found.greatest) == (5000, 5000, numbers.max())
    assert 1 <= len(counts) <= 65
    assert edges[-2] <= found.greatest < edges[-1]
    expected, _ = np.histogram(numbers.astype(np.float64), edges)
    assert np.abs(counts - expected).max() == 0
    for share in (0.1, 0.5, 0.99):
        exact = np.sort(numbers)[int(share * 5000) - 1]
        assert found.quantile(share) == pytest.approx(float(exact), rel=1 / 200)


def test_a_histogram_of_integers_is_exact_when_they_are_small():
    found = Histogram(1.0)
    found.add(np.arange(500))
    assert [found.quantile(k / 500) for k in (1, 2, 250, 500)] == [0, 1, 249, 499]
    few = Histogram(1.0)
    few.add(np.array([0, 0, 3]))
    edges, counts = few.bars()
    assert (edges.tolist(), counts.tolist()) == ([0, 1, 2, 3, 4], [2, 0, 0, 1])


def test_an_empty_histogram():
    found = Histogram()
    found.add(np.array([np.nan, np.inf]))
    assert (found.n, found.n_nonfinite, found.quantile(0.5)) == (0, 2, 0.0)
    assert found.bars()[1].tolist() == [0]
    assert Octaves().bars()[0] == []


def test_octaves():
    found = Octaves()
    found.add(np.array([1, 1, 2, 3, 4, 7, 8, 2**32 - 1], np.uint32))
    names, counts = found.bars()
    assert names[:4] == ["1", "2+", "4+", "8+"]
    assert (counts[:4].tolist(), counts[-1]) == ([2, 2, 2, 1], 1)
    assert (octave(0), octave(18), octave(32)) == ("0", "131k+", "2.15G+")


def test_short_words():
    assert [short(n) for n in (0, 1.5, 1234, 5e6, 7e9, 3e12)] == [
        "0",
        "1.5",
        "1.23k",
        "5M",
        "7G",
        "3T",
    ]
    sizes = [short_bytes(n) for n in (0, 999, 1024, 5 << 20, 3 << 30, 9 << 40)]
    assert sizes == ["0 B", "999 B", "1 KiB", "5 MiB", "3 GiB", "9 TiB"]
