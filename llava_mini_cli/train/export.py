"""The newest checkpoint of stage 2 of a demo run as a model directory, finished or not.

python -m llava_mini_cli.train.export WORK OUT_DIRECTORY
"""

import sys
from pathlib import Path

from safetensors.torch import load_file
from transformers.trainer_utils import get_last_checkpoint

from llava_mini_cli.errors import UsageError
from llava_mini_cli.train.demo import build_model, load_tokenizer, write_checkpoint
from llava_mini_cli.train.packed import PackedTrainer


def export(work: Path, target: Path) -> str:
    """Writes the checkpoint directory; returns the name of the training checkpoint that it came from.

    Raises:
        UsageError: stage 2 has no checkpoint yet.
    """
    stage = work / "stage2"
    last = get_last_checkpoint(str(stage)) if stage.is_dir() else None
    if last is None:
        raise UsageError(f"{stage}: no checkpoint of stage 2 yet")
    model = build_model(work / "clip", load_tokenizer(work / "tokenizer"))
    PackedTrainer(model).load_state_dict(load_file(Path(last) / "model.safetensors"))
    write_checkpoint(model, work, target)
    return Path(last).name


if __name__ == "__main__":
    print(export(Path(sys.argv[1]), Path(sys.argv[2])))
