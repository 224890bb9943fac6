"""Whether a device computes what it should: the reference's numbers, the plain path's tokens, little memory."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_oracle import GREEDY, QUESTIONS, Oracle, by_prompt, limits, make_oracle, request
from figures import Fields
from golden_cases import CASES, OWN, Scenario, scenarios, write_case

from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.request import Answer
from llava_mini_cli.model import LlavaMiniForConditionalGeneration, LlavaMiniProcessor

WORDS = ("what", "is", "the", "colour", "of", "this", "thing", "and", "where", "does", "it", "go?", "Count", "them.")


def goldens(device: torch.device) -> Iterator[Fields]:
    """The reference's logits and greedy ids on tiny weights, in float32 and, as drift, in bfloat16."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = {case: write_case(case, Path(folder) / case) for case in CASES}
        for dtype in (torch.float32, torch.bfloat16):
            worst, same, count = 0.0, 0, 0
            for case, checkpoint in checkpoints.items():
                model = LlavaMiniForConditionalGeneration.from_pretrained(checkpoint).to(device, dtype)
                processor = LlavaMiniProcessor.from_pretrained(checkpoint)
                for scenario in scenarios():
                    if scenario.root == OWN and scenario.case == case and "batch2" not in scenario.name:
                        error, ids = _golden(model, processor, scenario)
                        worst, same, count = max(worst, error), same + ids, count + 1
            fields: Fields = {"dtype": str(dtype).removeprefix("torch."), "scenarios": count, "worst_of_largest": worst}
            yield {"figure": "goldens", **fields, **({"same_ids": same} if dtype == torch.float32 else {})}


def _golden(model: Any, processor: LlavaMiniProcessor, scenario: Scenario) -> tuple[float, bool]:
    """The largest error of the logits over the largest of them, and whether greedy ids are the same (or not asked)."""
    want, raw = scenario.tensors(), scenario.inputs()
    if scenario.name == "text_only":
        media: dict[str, torch.Tensor] = {}
    else:
        name = "imgB" if scenario.name == "image_b" else "imgA"
        made = {"videos": raw["video_frames"]} if scenario.name == "video" else {"images": raw[name]}
        batch = processor(**made, text="x")
        media = {key: batch[key] for key in ("pixel_values", "frame_counts")}
    device, dtype = model.device, model.model.dtype
    text = {name: want[name].to(device) for name in ("input_ids", "attention_mask", "labels") if name in want}
    model.config.tokenizer_padding_side = "left" if "leftcfg" in scenario.name else "right"
    moved = {key: value.to(device, dtype if key == "pixel_values" else value.dtype) for key, value in media.items()}
    with torch.inference_mode():
        logits = model(**text, **moved).logits.float().cpu()
    real = want["out_attention_mask"] if "out_attention_mask" in want else torch.ones(logits.shape[:2]).bool()
    error = (logits - want["logits"])[real].abs().max() / want["logits"][real].abs().max()
    if "greedy_ids" not in want or dtype != torch.float32:
        return float(error), True
    text.pop("labels", None)  # kept out of pre-fusion, so the logits depend on them
    ids = model.generate(**text, **moved, max_new_tokens=want["greedy_ids"].shape[1]).cpu()
    return float(error), torch.equal(ids, want["greedy_ids"][:, : ids.shape[1]])


class Crowd:
    """Random media with random questions, what the plain path answers, and what an engine does."""

    def __init__(self, device: torch.device, folder: Path, media: int) -> None:
        self.oracle: Oracle = make_oracle(folder / "tiny")
        self.oracle.model.to(device)
        random = np.random.default_rng(0)
        self.asked: list[tuple[np.ndarray, list[str]]] = []
        for number in range(media):
            frames = 1 if number % 3 == 0 else int(random.integers(2, 40))
            texts = [" ".join(random.choice(WORDS, random.integers(1, 12))) for _ in range(random.integers(1, 6))]
            self.asked.append((self.oracle.video(frames, number), [*dict.fromkeys(texts), QUESTIONS[number % 5]]))

    def plain(self) -> dict[tuple[str, int, int], list[int]]:
        """Each question by itself, through `generate`."""
        found: dict[tuple[str, int, int], list[int]] = {}
        model, processor = self.oracle.model, self.oracle.processor
        ends = model.generation_config.eos_token_id
        for key, (pixels, texts) in enumerate(self.asked):
            for index, text in enumerate(texts):
                media: Any = {"images": pixels[0]} if len(pixels) == 1 else {"videos": pixels}
                batch = {name: value.to(model.device) for name, value in processor(**media, text=text).items()}
                ids = model.generate(**batch, max_new_tokens=GREEDY.max_new_tokens)[0].tolist()
                found[str(key), 0, index] = [token for token in ids if token not in ends]
        return found

    def through(self, engine: Engine) -> dict[tuple[str, int, int], list[int] | str]:
        """All at once; a failure is its type."""
        requests = [request(str(key), pixels, texts) for key, (pixels, texts) in enumerate(self.asked)]
        outcomes = by_prompt(list(engine.run(requests)))
        return {
            key: list(one.token_ids) if isinstance(one, Answer) else one.error_type for key, one in outcomes.items()
        }


def crowds(device: torch.device, media: int) -> Iterator[Fields]:
    """The engine against the plain path, token for token in float32; then with hardly any memory."""
    with tempfile.TemporaryDirectory() as folder:
        crowd = Crowd(device, Path(folder), media)
        plain = crowd.plain()
        for chunk, generations in ((8, 64), (32, 256), (1, 1)):
            found = crowd.through(crowd.oracle.engine(limits(chunk, generations)))
            yield _compared("engine against the plain path", plain, found) | {"chunk": chunk, "answers": generations}
        found = crowd.through(crowd.oracle.engine(limits(8, 64, cache_bytes=1 << 16)))
        yield _compared("with 64 KiB for keys and values", plain, found)
        if device.type == "cuda":
            for mib in (64, 16, 4):
                found = _with_memory(crowd, device, mib)
                yield _compared("with little memory on the card", plain, found) | {"mib_left": mib}


def _with_memory(crowd: Crowd, device: torch.device, mib: int) -> dict[tuple[str, int, int], list[int] | str]:
    """The answers while the process may take so many MiB more than it holds."""
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(device).total_memory
    share = (torch.cuda.memory_reserved(device) + (mib << 20)) / whole
    torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)
    try:
        return crowd.through(crowd.oracle.engine(limits(32, 256)))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def _compared(figure: str, plain: dict[Any, list[int]], found: dict[Any, list[int] | str]) -> Fields:
    kinds: Sequence[str] = sorted({one for one in found.values() if isinstance(one, str)})
    same = sum(found.get(key) == ids for key, ids in plain.items())
    return {"figure": figure, "questions": len(plain), "same": same, "failures": list(kinds)}
