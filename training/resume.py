"""From which checkpoint of a training run a resume starts: a kill can hit while one is being written."""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from quant.checkpoint import CHECKPOINT_FILE, check_digests, read_description

logger = logging.getLogger(__name__)


def last_whole_checkpoint(run: str | Path) -> Path | None:
    """Return the newest checkpoint folder of a run that was written to its end, None if there is none."""
    return next((folder for folder in _newest_first(Path(run)) if what_is_broken(folder) is None), None)


def set_broken_aside(run: str | Path) -> None:
    """Rename what is broken and newer than the last whole checkpoint, each named in a warning.

    Left in its place it would count as the newest checkpoint, and the Trainer would delete a whole one for it.
    """
    for folder in _newest_first(Path(run)):
        reason = what_is_broken(folder)
        if reason is None:
            return
        aside = folder.with_name(f"broken-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        logger.warning("%s was not written to its end (%s); it is now %s", folder, reason, aside.name)


def what_is_broken(checkpoint: Path) -> str | None:
    """Return why the Trainer cannot resume from a checkpoint folder, None if it is whole.

    trainer_state.json is the last file that the Trainer writes; torch's files are archives with their index at the end.
    """
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        if (checkpoint / CHECKPOINT_FILE).exists():
            check_digests(checkpoint, read_description(checkpoint))
    except (OSError, ValueError) as error:
        return str(error)
    torn = [each.name for each in sorted(checkpoint.glob("*.pt*")) if not zipfile.is_zipfile(each)]
    return f"{', '.join(torn)} cut off" if torn else None


def _newest_first(run: Path) -> list[Path]:
    steps = {folder: folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-") for folder in run.glob("checkpoint-*")}
    return sorted((each for each, step in steps.items() if step.isdigit()), key=lambda each: -int(steps[each]))
