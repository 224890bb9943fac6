"""The newest checkpoint of stage 2, or of the polish behind it, of a demo run as a model directory, finished or not.

    python -m llava_mini_cli.train.demo_preset.export WORK OUT_DIRECTORY [--average]

While the learning rate is still high, the mean of the kept checkpoints' weights answers better than the last alone.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from llava_mini_cli.errors import UsageError
from llava_mini_cli.train.demo_preset.packed_model import PackedTrainer
from llava_mini_cli.train.demo_preset.stages import POLISH, STAGE2, build_model, load_tokenizer, write_checkpoint
from llava_mini_cli.train.stage_resume import whole_checkpoints


def mean_state(checkpoints: list[Path]) -> dict[str, torch.Tensor]:
    """The mean of the checkpoints' weights."""
    states = [load_file(path / "model.safetensors") for path in checkpoints]
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


def export(work: Path, target: Path, average: bool = False) -> list[str]:
    """Writes the checkpoint directory; returns the names of the training checkpoints that it came from.

    Raises:
        UsageError: stage 2 has no checkpoint yet.
    """
    checkpoints = whole_checkpoints(work / POLISH.name) or whole_checkpoints(work / STAGE2.name)
    if not checkpoints:
        raise UsageError(f"{work / STAGE2.name}: no checkpoint of stage 2 yet")
    used = checkpoints if average else checkpoints[-1:]
    model = build_model(work / "clip", load_tokenizer(work / "tokenizer"))
    PackedTrainer(model).load_state_dict(mean_state(used))
    write_checkpoint(model, work, target)
    names = [f"{path.parent.name}/{path.name}" for path in used]
    planned = f"{STAGE2.steps} steps of {STAGE2.name} and {POLISH.steps} of {POLISH.name}"
    facts = {"checkpoints": names, "origin": f"These weights are of {', '.join(names)}, of {planned}."}
    (target / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    return names


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="directory of `llava-mini train --preset demo`")
    parser.add_argument("target", type=Path, help="directory that the model is written to")
    parser.add_argument(
        "--average", action="store_true", help="take the mean of the kept checkpoints, not the newest alone"
    )
    arguments = parser.parse_args()
    print(*export(arguments.work, arguments.target, arguments.average))
