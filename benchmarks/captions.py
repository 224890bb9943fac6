"""Captions of many images at once, beside transformers' LLaVA-1.5 in the batch in which it is quickest, in turn.

    python benchmarks/captions.py [--images 64] [--new-tokens 32] [--rounds 3] [--threads 2]

The model of `llava-mini bench --preset proportions`: random weights, the 8B model's depth and proportions; 43 text
tokens, no token ends an answer. LLaVA-1.5 answers one batch, and its time is divided by the images in it. One JSON line
a round.
"""

import argparse
import json
from functools import partial

import torch

from llava_mini_cli.bench.answering import answer, llava_answer
from llava_mini_cli.bench.subject import subject_of_preset
from llava_mini_cli.bench.timing import seconds
from llava_mini_cli.config import ModelOptions

BATCHES = 4, 8, 16  # of LLaVA-1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    subject = subject_of_preset("proportions", ModelOptions("proportions"))
    engine, new = subject.engine, arguments.new_tokens
    assert engine is not None
    with torch.inference_mode():
        answer(engine, 1, 1, 2, 2)
        llava_answer(subject.llava, engine, 1, 2)
        for _ in range(arguments.rounds):
            ours = seconds(partial(answer, engine, 1, 1, new, arguments.images), subject.device) / arguments.images
            llava = {
                batch: seconds(partial(llava_answer, subject.llava, engine, batch, new), subject.device) / batch
                for batch in BATCHES
            }
            report = {
                "images": arguments.images,
                "new_tokens": new,
                "image_s": round(ours, 4),
                "llava_image_s": {batch: round(taken, 4) for batch, taken in llava.items()},
                "times_llava": round(min(llava.values()) / ours, 3),
            }
            print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
