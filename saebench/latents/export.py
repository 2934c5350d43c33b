"""The latents with their texts as JSON, for other tools (such as an LLM that names them).

    {"format": "saebench.latents", "version": 1, "trial": "SWEEP/NUMBER", "part": "test", "texts": 6064,
     "dict_size": 1536, "notes": [...], "latents": [{
        "latent": 17, "density": 0.012, "firing": 73, "mean": 0.11, "max": 0.41,
        "keywords": [{"term": "river", "score": 1.2, "share": 0.31, "silent": 0.004}, ...],
        "label": {"name": "noun.object", "share": 0.6, "silent": 0.02} or null,
        "family": 3 or null, "found_by_other_seeds": 0.5 or null, "twin": 90 or null,
        "nearest": [{"latent": 90, "cosine": 0.91}, ...], "together": [{"latent": 4, "phi": 0.3}, ...],
        "top": [{"row": 4711, "activation": 0.41, "text": "..."}, ...],
        "deciles": [[{"row": ..., "activation": ..., "text": "..."}], ... ten, the strongest first]}, ...]}

Of a signed SAE (abs_topk) every end of a latent is an object of its own: `"end": "+"` or `"-"`; activations of the
negative end are negative, and other latents are named with their end, such as "90-".

`row` is the text's number in the corpus as the cache holds it. Fewer than ten firing texts: one list per text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, TextIO

from saebench.latents.analysis import Latents
from saebench.latents.facts import Example

FORMAT, VERSION = "saebench.latents", 1


def write_json(analysis: Latents, out: TextIO, top: int = 20, each: int = 2) -> None:
    """Write the document, one latent a line, `top` texts and `each` per decile of every latent."""
    head = {
        "format": FORMAT,
        "version": VERSION,
        "trial": analysis.trial.name,
        "part": analysis.part.name,
        "texts": len(analysis.part),
        "dict_size": analysis.codes.dict_size,
        "notes": analysis.notes,
    }
    out.write(json.dumps(head, ensure_ascii=False)[:-1] + ', "latents": [\n')
    for number, latent in enumerate(latents(analysis, top, each)):
        out.write((",\n" if number else "") + json.dumps(latent, ensure_ascii=False, allow_nan=False))
    out.write("\n]}\n")


def latents(analysis: Latents, top: int = 20, each: int = 2) -> Iterator[dict[str, Any]]:
    """The objects of the list, the most frequent latent first."""
    place = {latent: i for i, latent in enumerate(analysis.live.tolist())}
    for row in analysis.rows():
        latent = analysis.trial.ends.of(row["latent"], -1.0 if row.get("end") == "-" else 1.0)
        yield {
            "latent": row["latent"],
            **({"end": row["end"]} if "end" in row else {}),
            "density": row["density"],
            "firing": row["texts"],
            "mean": row["mean"],
            "max": row["max"],
            "keywords": [vars(keyword) for keyword in analysis.keywords[place[latent]]],
            "label": {"name": row["label"], "share": row["label_share"], "silent": row["label_silent"]}
            if row["label"] is not None
            else None,
            "family": row["family"],
            "found_by_other_seeds": _number(row["found_by_other_seeds"]),
            "twin": row["twin"],
            "nearest": [{"latent": j, "cosine": round(v, 4)} for j, v in row["nearest"]],
            "together": [{"latent": j, "phi": round(v, 4)} for j, v in row["together"]],
            "top": [_example(analysis, e, row) for e in analysis.by_latent.top(latent, top)],
            "deciles": [
                [_example(analysis, e, row) for e in some] for some in analysis.by_latent.deciles(latent, each)
            ],
        }


def _example(analysis: Latents, example: Example, row: dict[str, Any]) -> dict[str, Any]:
    sign = -1 if row.get("end") == "-" else 1
    texts = analysis.part.texts
    return {
        "row": analysis.part.row_numbers[example.row],
        "activation": sign * round(example.activation, 6),
        "text": None if texts is None else texts[example.row],
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
