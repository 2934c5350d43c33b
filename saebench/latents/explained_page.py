"""Effects of latents on targets as one page: static, without scripts or network."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from itertools import groupby
from typing import Any

from saebench.latents.explained import Explained
from saebench.latents.visible import visible

_HEAD = ("latent", "keywords", "effect (95%)", "p (Holm)", "fires inside", "outside", "path", "seeds that agree")


def explained_page(explained: Explained) -> str:
    """The page as text; every text of the corpus in it is escaped."""
    style = files("saebench.latents").joinpath("explained.css").read_text("utf-8")
    title = escape(f"{explained.latents.trial.name}: latents and targets")
    sections = groupby(explained.rows(), key=lambda row: row["target"])
    notes = "".join(f"<li>{escape(visible(note))}</li>" for note in explained.notes)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{style}</style></head><body><h1>{title}</h1>"
        f"<p>{escape(METHOD)}</p><ul>{notes}</ul>"
        + "".join(_section(str(target), list(rows)) for target, rows in sections)
        + "</body></html>\n"
    )


METHOD = (
    "Ranked on training texts; effect, interval and p on other texts. AUROC: 0.5 says nothing, 1 always higher inside, "
    "0 always lower. p corrected by Holm over all rows."
)


def _section(target: str, rows: list[dict[str, Any]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in _HEAD)
    body = "".join(_row(row) for row in rows)
    return (
        f'<section><h2>{escape(visible(target))}</h2><div class="scroll" tabindex="0"><table><thead><tr>{head}</tr>'
        f"</thead><tbody>{body}</tbody></table></div></section>"
    )


def _row(row: dict[str, Any]) -> str:
    texts = "".join(f"<li><bdi>{escape(visible(text))}</bdi></li>" for text in row["texts"])
    cells = [
        f"{row['latent']}{row.get('end', '')}",
        f"<details><summary>{escape(visible(row['keywords'])) or '(no keywords)'}</summary><ol>{texts}</ol></details>",
        f"{row['effect']:.3f} ({row['low']:.3f} to {row['high']:.3f})",
        "&lt; 0.001" if row["p_holm"] < 0.001 else f"{row['p_holm']:.3f}",
        f"{100 * row['inside']:.1f}%",
        f"{100 * row['outside']:.1f}%",
        "-" if row["path"] is None else f"{row['path']}",
        f"{row['confirmed']} of {row['seeds']}" if row["seeds"] else "-",
    ]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
