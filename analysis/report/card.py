"""A model card in Markdown, under the headings that Hugging Face gives it (Mitchell et al., FAT* 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jinja2
import pandas as pd
import yaml

from analysis.report import cells
from analysis.report.sections import ModelSection
from analysis.table.exports import in_markdown, pipes

TASK = "image-classification"
METRICS = {"accuracy": "accuracy", "balanced accuracy": "balanced_accuracy", "macro F1": "f1", "macro AUC": "roc_auc"}
"""What the hub calls the headline's scores."""


def model_card(section: ModelSection, headline: pd.DataFrame, rule: str, warnings: Sequence[str]) -> str:
    """The card of one model.

    Args:
        section: what its page says of it.
        headline: its scores on each set.
        rule: how their intervals were found.
        warnings: what one must know before believing them.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("analysis.report", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown: `md` escapes what comes from outside
    )
    environment.filters["md"] = lambda text: in_markdown(str(text))
    environment.globals["table"] = _table
    template = environment.get_template("card.md.j2")
    return template.render(
        model=section.model,
        section=section,
        headline=headline,
        rule=rule,
        warnings=warnings,
        front=yaml.safe_dump(_front(section.model.name, headline), sort_keys=False, allow_unicode=True),
        effort=dict(section.facts)["Training"],
    )


def _front(name: str, headline: pd.DataFrame) -> dict[str, object]:
    """What the hub reads of a card: tags, and the scores as its `model-index` has them."""
    results = [
        {
            "task": {"type": TASK},
            "dataset": {"name": f"{row['set']} ({row['split']})", "type": row["set"]},
            "metrics": [
                {"type": kind, "name": column, "value": round(row[column].value, 4)}
                for column, kind in METRICS.items()
                if not math.isnan(row[column].value)
            ],
        }
        for row in headline.to_dict("records")
    ]
    return {
        "library_name": "torchvision",
        "pipeline_tag": TASK,
        "tags": ["histology", "pathology", "resnet50"],
        "metrics": list(METRICS.values()),
        "model-index": [{"name": name, "results": results}],
    }


def _table(frame: pd.DataFrame) -> str:
    rows = [[_text(str(name), value) for name, value in row.items()] for row in frame.to_dict("records")]
    return pipes(list(map(str, frame.columns)), [cells.is_number(frame[name]) for name in frame.columns], rows)


def _text(column: str, value: object) -> str:
    ends = cells.ends(value, column)
    return f"{cells.shown(value, column)} ({ends})" if ends else cells.shown(value, column)
