"""The page of a report: HTML in one file that fetches nothing."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

CSS = """
:root { --ink: #1f2733; --soft: #5b6675; --line: #dfe4ea; --paper: #ffffff; --ground: #f5f7f9; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 24px 48px; }
h1 { font-size: 26px; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 21px; margin: 0; overflow-wrap: anywhere; }
h3 { font-size: 14px; margin: 0 0 6px; }
p { margin: 6px 0; }
.soft, figcaption, th { color: var(--soft); }
nav a { margin-right: 14px; color: #2563a8; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  padding: 20px 22px; margin-top: 22px; }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 14px 0 18px; }
.tile { border: 1px solid var(--line); border-radius: 8px; padding: 8px 14px; min-width: 118px; }
.tile b { display: block; font-size: 19px; font-variant-numeric: tabular-nums; }
.tile span { font-size: 12.5px; color: var(--soft); }
.grid { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 18px 26px; }
figure { margin: 0; break-inside: avoid; min-width: 0; }
figure svg { width: 100%; height: auto; display: block; }
figcaption { font-size: 12.5px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th { text-align: left; font-weight: normal; padding: 3px 14px 3px 0; white-space: nowrap;
  vertical-align: top; }
td { padding: 3px 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
tr + tr > * { border-top: 1px solid var(--line); }
@media (max-width: 760px) { .grid { grid-template-columns: minmax(0, 1fr); } }
@media print {
  body { background: #fff; font-size: 11pt; } main { max-width: none; padding: 0; }
  section { border: 0; padding: 12px 0; } nav { display: none; }
}
"""


def text(value: object) -> str:
    """Return a value as text of HTML."""
    return html.escape(str(value), quote=True)


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return a page of sections, each with its name and its HTML."""
    links = "".join(
        f'<a href="#table-{i}">{text(name)}</a>' for i, (name, _) in enumerate(sections)
    )
    body = "\n".join(
        f'<section id="table-{i}" aria-label="table {text(name)}">\n'
        f"<h2>{text(name)}</h2>\n{content}\n</section>"
        for i, (name, content) in enumerate(sections)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{text(title)}</h1>\n<p class="soft">{text(subtitle)}</p>\n<nav>{links}</nav>\n'
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def tiles(numbers: Mapping[str, str]) -> str:
    """Return numbers in boxes, each above its name."""
    boxes = (
        f'<div class="tile"><b>{text(number)}</b><span>{text(name)}</span></div>'
        for name, number in numbers.items()
    )
    return f'<div class="tiles">{"".join(boxes)}</div>'


def figure(title: str, svg: str, caption: str) -> str:
    """Return a figure with its title and caption."""
    return f"<figure><h3>{text(title)}</h3>{svg}<figcaption>{text(caption)}</figcaption></figure>"


def grid(parts: Iterable[str]) -> str:
    """Return parts in two columns, or one on a narrow page."""
    return f'<div class="grid">{"".join(parts)}</div>'


def members(title: str, values: Mapping[str, Any]) -> str:
    """Return a table of names and values."""
    rows = "".join(
        f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>'
        for name, value in values.items()
    )
    return f"<figure><h3>{text(title)}</h3><table>{rows}</table></figure>"
