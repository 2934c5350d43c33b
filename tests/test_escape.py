"""Control characters of strangers reach no terminal."""

from __future__ import annotations

import io
import unicodedata

import pytest
from click.testing import CliRunner
from rich.table import Table
from rich.text import Text

from saebench.cli import cli
from saebench.cli.output import echo
from saebench.escape import escape_controls
from saebench.terminal.console import make_console
from saebench.terminal.views import LiveView, PlainView

EVIL = "a\x1b[2Jb\x9b31mc\u202ed\x7fe\re\x08\u2028f"
SHOWN = r"a\x1b[2Jb\x9b31mc\u202ed\x7fe\re\x08\u2028f"


def steering(text: str) -> list[str]:
    """Every character of a text that does more than stand there: C0, C1, and those with a bidirectional class of
    control. By the Unicode database, not by our own list."""
    odd = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return [
        c for c in text if (unicodedata.category(c) == "Cc" and c not in "\n\t") or unicodedata.bidirectional(c) in odd
    ]


def test_what_is_escaped_is_what_steers_and_nothing_else() -> None:
    every = "".join(map(chr, range(0x3000)))
    escaped = escape_controls(every)
    assert steering(escaped) == []
    marks = "\u061c\u200e\u200f\u2028\u2029"
    kept = [c for c in every if not steering(c) and c not in marks]
    assert [c for c in kept if escape_controls(c) != c] == []
    assert escape_controls(EVIL) == SHOWN


@pytest.mark.parametrize("markup", [True, False])
def test_nothing_that_is_drawn_steers_the_terminal(markup: bool) -> None:
    table = Table(EVIL, title=EVIL)
    table.add_row(Text(EVIL))
    out = io.StringIO()
    console = make_console(out, width=200, markup=markup)
    console.print(table)
    console.print(Text(EVIL), EVIL)
    assert steering(out.getvalue()) == []
    assert out.getvalue().count(r"\x9b31m") >= 3, "twice as text, and in the title"


def test_text_is_no_markup_and_no_emoji_code() -> None:
    out = io.StringIO()
    console = make_console(out, width=80)
    table = Table("x")
    table.add_row("[/] [link=http://a.b]c[/link] :owl:")
    console.print(table, "[red]x[/red] [/]")
    assert "[/] [link=http://a.b]c[/link] :owl:" in out.getvalue()
    assert "[red]x[/red] [/]" in out.getvalue()


def test_lines_of_commands_and_views_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    echo(EVIL)
    out = io.StringIO()
    PlainView(out).say(EVIL)
    console = make_console(out, width=200)
    LiveView(console).say(f"[/] {EVIL}")
    for text in (capsys.readouterr().out, out.getvalue()):
        assert steering(text) == []
        assert SHOWN in text


def test_an_argument_comes_back_escaped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from saebench.cli import main

    monkeypatch.setattr("sys.argv", ["saebench", "status", EVIL])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert SHOWN in said
    assert steering(said) == []
    assert CliRunner().invoke(cli, ["--help"]).exit_code == 0
