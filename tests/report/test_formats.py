"""Formats: raw numbers come back, text is escaped, LaTeX compiles."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from sweep_data import frame_of, simulate, with_state

from saebench.escape import CONTROLS
from saebench.report import TABLES, formats, latex
from saebench.report.document import Report
from saebench.report.html import page
from saebench.report.record import Record
from saebench.report.screen import screen
from saebench.report.text import show
from saebench.terminal.console import make_console


@pytest.fixture(scope="module")
def report() -> Report:
    trials = simulate(arms={"topk": 1.0, "jumprelu": 0.95}, points=3)
    trials[4] = with_state(trials[4], "failed", 'cuda_oom: 50% of "memory" & <more>_in {use} | x ~ ^ \\ # $')
    return Report(Record(frame_of(trials), notes=["a note_with 100% of & everything"]))


def test_json_is_a_list_of_objects_with_the_promised_keys(report: Report) -> None:
    rows = json.loads(formats.to_json(report.table("trials")))
    assert len(rows) == len(report.frame)
    keys = {"trial", "state", "type", "k", "dict_size", "seed", "lr", "eval/fvu", "eval/mse", "eval/l0"}
    assert all(keys <= row.keys() for row in rows)
    first, failed = rows[0], rows[4]
    assert (first["trial"], first["state"], first["type"], first["seed"]) == (0, "complete", "topk", 0)
    assert type(first["k"]) is int
    assert first["target_l0"] is None
    assert (failed["state"], failed["eval/fvu"]) == ("failed", None)
    assert rows[-1]["verdict"]["pruner"] == "median"


def test_csv_and_parquet_hold_the_raw_numbers(report: Report, tmp_path: Path) -> None:
    for name in TABLES:
        table = report.table(name)
        formats.parquet(table, tmp_path / "t.parquet")
        back = pd.read_parquet(tmp_path / "t.parquet")
        assert len(back) == len(table.frame)
        assert list(back.columns) == list(table.frame.columns)
    table = report.table("trials")
    back = pd.read_csv(io.StringIO(formats.csv(table)))
    assert back["eval/fvu"].tolist() == pytest.approx(table.frame["eval/fvu"].tolist(), nan_ok=True, rel=1e-12)
    assert json.loads(back["verdict"].dropna().iloc[0])["threshold"] == 0.52


def test_markdown_cells_do_not_break_their_rows(report: Report) -> None:
    text = formats.markdown_table(report.table("lost"))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
    assert "&lt;more&gt;_in {use} \\| x" in text


def test_markdown_has_the_verdict_before_the_tables(report: Report) -> None:
    text = formats.markdown(report, [report.table("strata")])
    assert text.index("jumprelu reconstructs better than topk") < text.index("## Strata")
    assert "- a note_with 100%" in text


def test_tex_escapes_everything_that_means_something() -> None:
    assert latex.tex("50% & _x_ {a} #1 $2 ~ ^ \\ < >") == (
        r"50\% \& \_x\_ \{a\} \#1 \$2 \textasciitilde{} \textasciicircum{} \textbackslash{} \textless{} \textgreater{}"
    )
    assert latex.tex("é ± 木") == "é ± ?"


def test_latex_is_balanced(report: Report) -> None:
    text = latex.document(report, [report.table(name) for name in TABLES])
    body = text.replace(r"\{", "").replace(r"\}", "")
    assert body.count("{") == body.count("}")
    for kind in ("document", "itemize", "longtable"):
        assert text.count(f"\\begin{{{kind}}}") == text.count(f"\\end{{{kind}}}") > 0


def test_a_table_for_a_paper_is_a_float_with_label_bold_best_and_math(report: Report) -> None:
    text = latex.floating(report, report.table("strata"))
    assert text.startswith("% needs \\usepackage{booktabs}\n\\begin{table}[t]\n")
    assert "\\label{tab:demo-strata}" in text
    assert "documentclass" not in text
    body = text.partition("\\midrule\n")[2].partition("    \\bottomrule")[0]
    rows = [line for line in body.splitlines() if "&" in line]
    assert len(rows) == len(report.strata.frame)
    head = text.partition("    \\midrule")[0].splitlines()[-1]
    assert len({row.count("&") for row in [*rows, head]}) == 1
    bold = [row for row in rows if re.search(r"\$\\mathbf\{0\.\d+ \\pm 0\.\d+\}\$", row)]
    frame = report.strata.frame
    best = frame.loc[frame.groupby("level")["fvu"].idxmin()]
    assert len(bold) == len(best)
    for row, (arm, width) in zip(sorted(bold), sorted(zip(best["arm"], best["dict_size"], strict=True)), strict=True):
        assert row.split(" & ")[0].strip() == arm
        assert f"${width:g}$" in row
    assert "\\addlinespace" in body
    assert "--table" not in text


def test_negative_numbers_and_dashes_have_the_right_sign() -> None:
    assert latex._cell("-4.1%", False) == r"$-$4.1\%"
    assert latex._cell("-0.5", True) == r"$\mathbf{-0.5}$"
    assert latex._cell("1,536", False) == "$1{,}536$"
    assert latex._cell("-", False) == "--"
    assert latex._cell("0.4556 ± 0.0069", False) == r"$0.4556 \pm 0.0069$"
    assert latex._cell("k=16_a", False) == r"k=16\_a"


def test_a_long_table_breaks_between_pages_and_has_its_label(report: Report) -> None:
    text = latex.floating(report, report.table("trials"))
    assert "\\begin{longtable}" in text
    assert text.count("\\label{tab:demo-trials}") == 1


@pytest.mark.slow
def test_latex_compiles(report: Report, tmp_path: Path) -> None:
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed")
    text = latex.document(report, [report.table(name) for name in TABLES])
    inside = "\n".join(latex.floating(report, report.table(name)) for name in TABLES)
    (tmp_path / "report.tex").write_text(text.replace("\\end{document}", f"{inside}\\end{{document}}"))
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "not found" in done.stdout and ".sty" in done.stdout:
        pytest.skip("this TeX has no booktabs or longtable")
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "report.pdf").stat().st_size > 10_000


def shown(report: Report, width: int, names: tuple[str, ...] = ()) -> str:
    out = io.StringIO()
    show(report, Console(file=out, width=width), [report.table(name) for name in names] or None)
    return out.getvalue()


def test_the_terminal_begins_with_counts_and_the_verdict(report: Report) -> None:
    lines = shown(report, 140).splitlines()
    assert lines[0] == "demo  60 trials: 48 complete, 11 pruned, 1 failed"
    assert lines[1].startswith("sentence-transformers/all-MiniLM-L6-v2 on parquet; up to 20,000 texts, ")
    assert lines[3].startswith("jumprelu reconstructs better than topk")
    assert lines[4].startswith("jumprelu reconstructs better than topk at equal L0: FVU ")
    assert "note: a note_with 100% of & everything" in lines


@pytest.mark.parametrize("width", [80, 100, 140])
def test_no_number_is_cut_however_narrow_the_terminal(report: Report, width: int) -> None:
    text = shown(report, width, ("strata", "arms"))
    row = report.table("strata").rows()[0]
    assert f"{row['fvu']:.4f} ± {row['fvu_high'] - row['fvu']:.4f}" in text
    assert "4/0/1" in text  # what did not survive stands beside what did
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize("name", ["best", "seeds", "trials", "verdict", "strata", "arms", "effects"])
def test_no_word_is_cut_in_a_terminal_of_80_columns(width: int, name: str) -> None:
    few = Report(Record(frame_of(simulate(levels=(16, 32), widths=(1536,)))))
    text = shown(few, width, (name,))
    rows = few.table(name).rows()
    key = next(column for column in few.table(name).columns if column.key == "arm" or column.title in ("arm", "arms"))
    assert {word for row in rows for word in key.text(row).split()} <= set(text.split())
    heads = {word for line in text.split("─")[0].splitlines() for word in line.split()}
    kept = [c for c in few.table(name).columns if not c.drop]
    assert {word for column in kept for word in column.title.split()} <= heads
    assert max(map(len, text.splitlines())) <= width


def test_columns_that_there_is_no_room_for_are_named(report: Report) -> None:
    said = " ".join(shown(report, 80, ("strata",)).split())
    assert "No room here for: std, expl. var., dead, point chosen as." in said
    assert "No room here" not in shown(report, 200, ("strata",))


def test_every_document_says_what_it_is_about(report: Report) -> None:
    (line,) = report.about
    assert line.endswith("; 100,000 examples per trial; seeds 0, 1, 2")
    assert f"{line}  \n" in formats.markdown(report, [])
    assert latex.tex(line) in latex.document(report, [])
    assert line in page(report)


def test_a_terminal_too_narrow_for_a_word_per_column_still_shows_them_all(report: Report) -> None:
    text = shown(report, 40, ("best",))
    assert max(map(len, text.splitlines())) <= 40
    assert text.count("…") == 0


def test_a_few_trials_are_listed_with_all_and_the_rest_is_offered(report: Report) -> None:
    assert "more: --full, --table NAME" in shown(report, 140)
    assert "Trials" not in shown(report, 140).split()
    few, out = Report(Record(frame_of(simulate(levels=(16,), widths=(1536,), points=1)))), io.StringIO()
    show(few, Console(file=out, width=140), everything=True)
    assert "Trials" in out.getvalue().split()


def test_rows_that_a_screen_has_no_room_for_are_counted(report: Report) -> None:
    rows, out = len(report.table("strata").frame), io.StringIO()
    screen(report, Console(file=out, width=100), 24)
    table = out.getvalue().split("FVU ± 95%")[1].splitlines()
    there = sum(line.startswith(("topk", "batchtopk")) for line in table)
    assert 3 <= there < rows
    assert f"{rows - there} more rows: --table strata; more: --full" in out.getvalue()


HOSTILE = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\x1b[31mred", "\x9b31m", "\u202egnp.exe",
           "<script>x</script>", "a|b", "$x_1$ \\input{/etc/passwd}", "\t=1"]  # fmt: skip
"""Text that a spec, a host or a server may hold."""


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_outside_is_escaped_at_every_door(text: str) -> None:
    trials = simulate(levels=(16,), widths=(1536,), points=1)
    for trial in trials:
        trial["params"]["data.prompt"] = text
    trials[0] |= {"state": "failed", "reason": text}
    record = Record(frame_of(trials))
    record.descriptions = {"demo": text}
    record.note(f"a note: {text}")
    report = Report(record)
    cells = list(csv.reader(io.StringIO(formats.csv(report.table("trials")))))
    assert not [c for row in cells for c in row if c[:1] in ("=", "+", "-", "@") and not formats._NUMBER.fullmatch(c)]
    terminal = io.StringIO()
    show(report, make_console(terminal, width=100), everything=True)
    show(report, make_console(terminal, width=100))
    lost = [report.table("lost")]
    documents = [terminal.getvalue(), formats.csv(report.table("trials")), formats.markdown(report, lost),
                 latex.document(report, lost), page(report)]  # fmt: skip
    for document in documents:
        assert not re.search(f"[{CONTROLS}]", document.replace("\r\n", "\n"))
    assert "<script>x" not in documents[2]
    assert "<script>x" not in documents[4]
    assert "\\input{" not in documents[3]


def test_numbers_stay_numbers_in_csv() -> None:
    assert [formats._cell(text) for text in ("-1.5e-3", "+2", "-", "=1", "a")] == ["-1.5e-3", "+2", "'-", "'=1", "a"]


@pytest.mark.parametrize(
    "text",
    [
        "[click](https://x.org)", "![see](https://x.org/a.png)", r"[a\](https://x.org)", r"[a\\](https://x.org)",
        "[a][b] and [b]: https://x.org", "[b]: https://x.org", "<https://x.org>", "[a] (0.1 to 0.2) [0.3, 0.4]",
        "[![a](https://x.org)](https://y.org)",
    ],
)  # fmt: skip
def test_text_from_outside_makes_no_link_and_no_image_in_markdown(text: str) -> None:
    MarkdownIt = pytest.importorskip("markdown_it", reason="older releases of rich bring none").MarkdownIt

    document = formats.md(text)
    tokens = [child for token in MarkdownIt().parse(f"{document}\n\n[b]\n") for child in token.children or [token]]
    assert not {token.type for token in tokens} & {"link_open", "image", "html_inline", "html_block"}
    shown = "".join(token.content for token in tokens if token.type in ("text", "text_special"))
    assert shown.removesuffix("[b]").replace("\\", "") == text.replace("\\", ""), "what is shown stays the same"
