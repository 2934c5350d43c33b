"""Tables for LaTeX: a document that compiles, and floats to put into a paper."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saebench.escape import escape_controls
from saebench.metrics import METRICS
from saebench.report.table import Column, Row, Table, missing

if TYPE_CHECKING:
    from saebench.report.document import Report

MOST = 45
"""Most rows of a table on one page; a longer table is a longtable, which breaks between pages."""
_DROP = 3
"""Columns with a `drop` of at least this are left out of a paper, too."""

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def tex(text: str) -> str:
    """Return text with LaTeX's special characters escaped; characters that pdflatex cannot print become question
    marks."""
    escaped = re.sub(r"[\\&%$#_{}~^<>]", lambda match: _TEX[match.group()], escape_controls(text))
    return escaped.encode("latin-1", "replace").decode("latin-1").replace("\n", " ")


def longtable(table: Table) -> str:
    """A longtable with booktabs rules; numbers right, words left."""
    if not len(table.frame):
        return f"\\subsection*{{{tex(table.title)}}}\nNone.\n"
    rows = [[c.text(row) for c in table.columns] for row in table.rows()]
    sides = "".join("r" if all(re.match(r"^[-+]?[\d.]|^[-<]", cell) for cell in column) else "l"
                    for column in zip(*rows, strict=True))  # fmt: skip
    head = " & ".join(f"\\textbf{{{tex(c.title)}}}" for c in table.columns)
    body = "\n".join(f"{' & '.join(map(tex, row))} \\\\" for row in rows)
    return (
        f"\\begin{{longtable}}{{@{{}}{sides}@{{}}}}\n\\caption{{{tex(f'{table.title}. {table.note}'.strip())}}}\\\\\n"
        f"\\toprule\n{head} \\\\\n\\midrule\n\\endfirsthead\n\\toprule\n{head} \\\\\n\\midrule\n\\endhead\n"
        f"{body}\n\\bottomrule\n\\end{{longtable}}\n"
    )


# --- a float for a paper ---------------------------------------------------------------------------------------------


def floating(report: Report, table: Table) -> str:
    """A table to put into a paper that has \\usepackage{booktabs}: caption, label, numbers in math mode, the best of
    each level of sparsity in bold. A longtable (which needs its package, too) if it has more rows than a page."""
    label = _label(f"tab:{report.name}-{table.name}")
    if len(table.frame) > MOST:
        return "% needs \\usepackage{booktabs,longtable}\n" + longtable(table).replace(
            "\\\\\n\\toprule", f"\\label{{{label}}}\\\\\n\\toprule", 1
        )
    columns = [c for c in table.columns if c.drop < _DROP]
    rows = table.rows()
    best = {c.key: _best(rows, c.key) for c in columns}
    cells = [[_cell(c.text(row), i in best[c.key]) for c in columns] for i, row in enumerate(rows)]
    sides = (
        "".join("r" if all(_is_number(c.text(row)) for row in rows) else "l" for c in columns)
        if rows
        else "l" * len(columns)
    )
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}[t]",
        "  \\centering",
        f"  \\caption{{{_caption(table)}}}",
        f"  \\label{{{label}}}",
        "  \\vspace{1ex}",  # article puts a caption close above what follows
        "  \\small",
        f"  \\begin{{tabular}}{{@{{}}{sides}@{{}}}}",
        "    \\toprule",
        f"    {' & '.join(_heading(c) for c in columns)} \\\\",
        "    \\midrule",
        *_body(rows, cells),
        "    \\bottomrule",
        "  \\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _body(rows: Sequence[Row], cells: Sequence[Sequence[str]]) -> list[str]:
    """A line per row, with a gap where another arm begins."""
    lines, before = [], rows[0].get("arm") if rows else None
    for row, texts in zip(rows, cells, strict=True):
        if row.get("arm") != before:
            lines.append("    \\addlinespace")
            before = row.get("arm")
        lines.append(f"    {' & '.join(texts)} \\\\")
    return lines


def _label(text: str) -> str:
    return re.sub(r"[^\w:-]+", "-", text, flags=re.ASCII).strip("-")


def _caption(table: Table) -> str:
    """Return title and note, without hints for the terminal."""
    note = re.sub(r" ?\(--table \w+\)", "", table.note)
    bold = " Bold: best of its level." if any(_best(table.rows(), c.key) for c in table.columns) else ""
    return tex(f"{table.title}. {note}".strip()) + bold


def _heading(column: Column) -> str:
    return tex(column.title).replace(" ± ", " $\\pm$ ")


def _best(rows: Sequence[Mapping[Any, Any]], key: str) -> set[int]:
    """Rows with the best value of their data and level; none in a column that is not a metric, or with one row per
    level."""
    metric = METRICS.get(key)
    if metric is None or metric.direction is None or not rows or "level" not in rows[0]:
        return set()
    levels: dict[tuple[str, str], list[int]] = {}
    for i, row in enumerate(rows):
        if not missing(row.get(key)):
            levels.setdefault((str(row.get("group")), str(row["level"])), []).append(i)
    choose = max if metric.direction == "maximize" else min
    best: set[int] = set()
    for mine in levels.values():
        value = choose(rows[i][key] for i in mine)
        best |= {i for i in mine if rows[i][key] == value} if len(mine) > 1 else set()
    return best


_NUMBER = r"[-+]?[\d,]*\.?\d+(?:e[-+]?\d+)?"


def _is_number(text: str) -> bool:
    return text in ("", "-") or re.match(rf"<? ?{_NUMBER}", text) is not None


def _cell(text: str, bold: bool) -> str:
    """Numbers in math mode, with a true minus and \\pm; words escaped."""
    if text in ("", "-"):
        return "--" if text else ""
    interval = re.fullmatch(rf"({_NUMBER})(?: ± ({_NUMBER}))?", text)
    if interval:
        value = interval[1].replace(",", "{,}") + (f" \\pm {interval[2]}" if interval[2] else "")
        return f"$\\mathbf{{{value}}}$" if bold else f"${value}$"
    escaped = re.sub(r"(?<![\w.])-(?=\d)", "$-$", tex(text)).replace("±", r"$\pm$")
    return f"\\textbf{{{escaped}}}" if bold else escaped


# --- a document ------------------------------------------------------------------------------------------------------


def document(report: Report, tables: Sequence[Table]) -> str:
    """A document that compiles with pdflatex; copy the longtables from it into a paper."""
    parts = [longtable(table) for table in tables]
    about = "".join(f"{tex(line)}\\\\\n" for line in report.about)
    verdicts = "\n".join(f"\\item {tex(text)}" for text in report.sentences)
    checks = "\n".join(f"\\item {tex(check.text)}" for check in report.checks if not check.passed)
    checks = f"\\subsection*{{Before you use it}}\n\\begin{{itemize}}\n{checks}\n\\end{{itemize}}\n" if checks else ""
    notes = "\n".join(f"\\item {tex(text)}" for text in report.record.notes)
    notes = f"\\subsection*{{Notes}}\n\\begin{{itemize}}\n{notes}\n\\end{{itemize}}\n" if notes else ""
    return (
        "\\documentclass[a4paper,landscape]{article}\n\\usepackage[utf8]{inputenc}\n\\usepackage[T1]{fontenc}\n"
        "\\usepackage[margin=15mm]{geometry}\n\\usepackage{booktabs,longtable}\n\\begin{document}\n\\small\n"
        f"\\section*{{{tex(report.name)}}}\n{about}{tex(report.counts)}.\n"
        f"\\subsection*{{Verdict}}\n{tex(report.verdict)}\n\\begin{{itemize}}\n{verdicts}\n\\end{{itemize}}\n{checks}{notes}"
        "\\scriptsize\n" + "\n".join(parts) + "\\end{document}\n"
    )
