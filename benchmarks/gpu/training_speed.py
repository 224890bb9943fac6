"""The second stage of training on tiny data, in bfloat16: that it runs on the device, and how fast."""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from figures import Fields
from PIL import Image
from tiny_checkpoints import write_tiny_checkpoint

from llava_mini_cli.train.finetune import finetune
from llava_mini_cli.train.train_options import TrainOptions

RECORDS, BATCH = 32, 4


def stage_two(device: torch.device) -> Iterator[Fields]:
    """Updates a second. transformers' Trainer chooses the device: CUDA where there is one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_tiny_checkpoint(folder / "tiny")
        pictures = np.random.default_rng(0).integers(0, 256, (RECORDS, 48, 64, 3)).astype(np.uint8)
        records: list[object] = []
        for number, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(folder / f"{number}.png")
            turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"Noise {number}."}]
            records.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
        (folder / "data.json").write_text(json.dumps(records))
        options = TrainOptions(
            model=str(model), data=folder / "data.json", output=folder / "run", stage=2, media_root=folder,
            epochs=2, batch=BATCH, device_batch=BATCH, bf16=device.type == "cuda",
        )  # fmt: skip
        began = time.perf_counter()
        finetune(options, lambda _: None)
        taken = time.perf_counter() - began
    steps = 2 * RECORDS // BATCH
    yield {"figure": "training", "stage": 2, "updates": steps, "s": taken, "updates_s": steps / taken}
