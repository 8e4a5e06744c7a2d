"""The audits of a page: one for all runs that have the same tiles, split in the same way."""

from __future__ import annotations

import json
from dataclasses import dataclass

from analysis.audit.audit import audit_run
from analysis.audit.findings import Audit
from analysis.collect import Run
from trainer.config import load_config
from trainer.errors import RunError, UsageError


@dataclass(frozen=True)
class Elsewhere:
    """The audit stands in another section, of a run with the same tiles and split."""

    anchor: str
    name: str
    """Of that run."""


class Audits:
    """What the tiles of each run say of how far to trust its scores."""

    def __init__(self) -> None:
        self._shown: dict[str, Elsewhere] = {}

    def of(self, run: Run, anchor: str) -> Audit | Elsewhere | str:
        """The audit of a run whose section has that anchor; where it stands already; or why there is none."""
        try:
            tiles = _tiles_and_split(run)
            if tiles not in self._shown:
                self._shown[tiles] = Elsewhere(anchor, run.name)
                return audit_run(run)
            return self._shown[tiles]
        except (UsageError, RunError) as error:
            return str(error)
        except Exception as error:  # whatever tiles may hold: the page has more to say than this
            return f"it failed with {type(error).__name__}: {error}"


def _tiles_and_split(run: Run) -> str:
    """What an audit of a run's tiles depends on: equal for runs that have the same."""
    class_map = load_config(run.directory.config_file).data.class_map
    split = run.split.sort_values("tile_id").to_csv(index=False)
    return json.dumps([run.identity["data"], run.classes, class_map, split], sort_keys=True)
