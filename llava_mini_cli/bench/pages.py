"""A report as Markdown and as one web page that loads nothing and runs no script."""

from base64 import b64encode
from collections.abc import Iterator, Mapping
from html import escape

from llava_mini_cli.bench.report import Report, Table

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }}
th, td {{ border-bottom: 1px solid #8884; padding: .25rem .7rem; text-align: left; vertical-align: top; }}
td:first-child {{ white-space: nowrap; }}
.number {{ text-align: right; }}
img {{ display: block; height: auto; max-width: 100%; }}
p {{ max-width: 48rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
"""

Pictures = Mapping[str, bytes]  # SVG by the title of a chart; those that are missing are left out


def title_of(report: Report) -> str:
    """The heading of a report."""
    return f"llava-mini bench: {report.facts['model']}"


def markdown(report: Report, files: Mapping[str, str]) -> str:
    """The report as Markdown.

    Args:
        files: names of the files of charts, by the title of the chart.
    """
    parts = [f"# {title_of(report)}", _markdown_table(["", ""], [[key, str(value)] for key, value in _facts(report)])]
    for table in report.tables:
        parts.append(f"## {table.title}")
        if table.records:
            numbers = [table.is_number(column) for column in table.columns]
            parts.append(_markdown_table([column.title for column in table.columns], table.cells(), numbers))
        parts += table.notes
        parts += [f"![{chart.title}]({files[chart.title]})" for chart in table.charts if chart.title in files]
    return "\n\n".join(parts) + "\n"


def _markdown_table(
    heads: list[str], rows: Iterator[list[str]] | list[list[str]], numbers: list[bool] | None = None
) -> str:
    right = numbers or [False] * len(heads)
    rules = ["---:" if is_right else "---" for is_right in right]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (heads, rules, *rows)
    )


def page(report: Report, pictures: Pictures) -> str:
    """The report as a web page with its pictures inside."""
    parts = [_HEAD.format(title=escape(title_of(report)), policy=_POLICY), '<div class="wide"><table>']
    parts += [f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in _facts(report)]
    parts.append("</table></div>")
    for table in report.tables:
        parts += [f"<h2>{escape(table.title)}</h2>", *_page_table(table)]
        parts += [f"<p>{escape(note)}</p>" for note in table.notes]
        for chart in table.charts:
            if chart.title in pictures:
                data = b64encode(pictures[chart.title]).decode()
                parts.append(f'<img alt="{escape(chart.title)}" src="data:image/svg+xml;base64,{data}">')
    return "\n".join([*parts, "</body>", "</html>", ""])


def _page_table(table: Table) -> Iterator[str]:
    if not table.records:
        return
    classes = [' class="number"' if table.is_number(column) else "" for column in table.columns]
    heads = zip(classes, (column.title for column in table.columns), strict=True)
    yield '<div class="wide"><table>'
    yield "<tr>" + "".join(f"<th{kind}>{escape(title)}</th>" for kind, title in heads) + "</tr>"
    for row in table.cells():
        cells = zip(classes, row, strict=True)
        yield "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in cells) + "</tr>"
    yield "</table></div>"


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    for key, value in report.facts.items():
        yield key.replace("_", " "), "not known" if value is None else str(value)
