"""A page of text, tables and pictures, as Markdown and as HTML.

A page is a list of ``Heading``, ``Text``, ``Code``, ``Table`` and ``Picture``.
What they hold is plain text: names of classes or folders cannot become markup.
"""

import base64
import html
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the page's own."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Code:
    """Lines for a shell."""

    lines: list


@dataclass(frozen=True)
class Table:
    """A table, its first column flush left and the others flush right.

    Attributes
    ----------
    header : list of str
        Names of the columns.
    rows : list of list of str
        As many cells as the header has.
    """

    header: list
    rows: list


@dataclass(frozen=True)
class Picture:
    """A PNG picture.

    Attributes
    ----------
    name : str
        Of its file, beside the Markdown.
    png : bytes
        What the file holds.
    caption : str
        What it shows.
    """

    name: str
    png: bytes
    caption: str


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 sans-serif; color: #222; max-width: 60rem;
    margin: 2rem auto; padding: 0 1rem; }}
h1, h2, h3 {{ line-height: 1.2; margin-top: 2em; }}
div, pre {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3em .8em; text-align: right;
    border-bottom: 1px solid #ddd; }}
th {{ border-bottom: 2px solid #888; vertical-align: bottom; }}
th:first-child, td:first-child {{ text-align: left; }}
figure {{ display: inline-block; vertical-align: top; margin: 1rem 1rem 0 0;
    width: 28rem; max-width: 100%; }}
img {{ width: 100%; }}
figcaption {{ font-size: .9em; color: #555; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def as_markdown(page):
    """A page as Markdown, whose pictures are files beside it.

    Example
    -------
    >>> print(
    ...     as_markdown([Heading(1, "Toy"), Table(["a|b", "n"], [["x", "1"]])])
    ... )
    # Toy
    <BLANKLINE>
    | a\\|b | n |
    | :-- | --: |
    | x | 1 |
    <BLANKLINE>
    """
    blocks = []
    for part in page:
        match part:
            case Heading():
                blocks.append(f"{'#' * part.level} {_plain(part.text)}")
            case Text():
                blocks.append(_plain(part.text))
            case Code():
                blocks.append("\n".join(f"    {line}" for line in part.lines))
            case Table():
                rule = ":--", *["--:"] * (len(part.header) - 1)
                rows = [map(_plain, row) for row in (part.header, *part.rows)]
                rows.insert(1, rule)
                blocks.append("\n".join(f"| {' | '.join(r)} |" for r in rows))
            case Picture():
                blocks.append(f"![{_plain(part.caption)}]({part.name})")
    return "\n\n".join(blocks) + "\n"


def as_html(page):
    """A page as one HTML file, which holds its pictures.

    Example
    -------
    >>> "<h1>1 &lt; 2</h1>" in as_html([Heading(1, "1 < 2")])
    True
    """
    blocks = []
    for part in page:
        match part:
            case Heading():
                text = html.escape(part.text)
                blocks.append(f"<h{part.level}>{text}</h{part.level}>")
            case Text():
                blocks.append(f"<p>{html.escape(part.text)}</p>")
            case Code():
                text = html.escape("\n".join(part.lines))
                blocks.append(f"<pre>{text}</pre>")
            case Table():
                lines = [_html_row("th", part.header)]
                lines += [_html_row("td", row) for row in part.rows]
                table = "\n".join(["<table>", *lines, "</table>"])
                blocks.append(f"<div>\n{table}\n</div>")
            case Picture():
                data = base64.b64encode(part.png).decode()
                caption = html.escape(part.caption)
                blocks.append(
                    f'<figure><img alt="{caption}" '
                    f'src="data:image/png;base64,{data}">\n'
                    f"<figcaption>{caption}</figcaption></figure>"
                )
    title = next((p.text for p in page if isinstance(p, Heading)), "")
    return _PAGE.format(title=html.escape(title), body="\n".join(blocks))


def _html_row(tag, cells):
    line = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
    return f"<tr>{line}</tr>"


def _plain(text):
    """Text on one line, without what Markdown would read as markup."""
    text = " ".join(text.split())
    # A bracket around a number is a reference of the paper, and an underscore
    # inside a word is no emphasis.
    text = re.sub(r"([\\`*|<>&~]|\[(?!\d+\](?!\()))", r"\\\1", text)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)
