"""The newest whole checkpoint of a stage, from which it goes on, and the check that this is of the same run.

Knows nothing of models or data.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from shutil import rmtree

from llava_mini_cli.errors import OutputError, UsageError

FACTS = "run.json"
LAST_WRITTEN = "trainer_state.json"  # of a checkpoint's files, by transformers' Trainer

Fact = str | int | float | bool | None


def whole_checkpoints(stage: Path) -> list[Path]:
    """The checkpoints of a stage that were written to their end, oldest first."""
    return [path for path in _checkpoints(stage) if (path / LAST_WRITTEN).is_file()]


def last_checkpoint(stage: Path) -> Path | None:
    """The newest whole checkpoint. Checkpoints that a kill or a full disk cut short are removed."""
    whole = whole_checkpoints(stage)
    for path in _checkpoints(stage):
        if path not in whole:
            rmtree(path)
    return whole[-1] if whole else None


def same_run(stage: Path, facts: Mapping[str, Fact]) -> None:
    """Writes down the facts that decide a run, or compares them with those of the checkpoints that are there.

    Raises:
        UsageError: there are checkpoints of another run; the differences are named.
        OutputError: the directory cannot be written to.
    """
    path = stage / FACTS
    if not whole_checkpoints(stage):
        try:
            stage.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(dict(facts), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write '{path}': {error.strerror}") from error
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    changed = [f"{key} {now} (was {before.get(key)})" for key, now in facts.items() if before.get(key) != now]
    if changed:
        raise UsageError(
            f"'{stage}' holds checkpoints of another run: {'; '.join(changed)}; train into another directory, or "
            "remove this one"
        )


def _checkpoints(stage: Path) -> list[Path]:
    found = [path for path in stage.glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))
