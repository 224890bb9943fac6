"""Answers that are held to a grammar: what it costs a token, and whether they are what the schemas ask for.

    python benchmarks/grammars.py masks --write benchmarks/results/grammars.json
    python benchmarks/grammars.py answers --count 1000 --write benchmarks/results/grammars.json

`masks` writes answers with a tokenizer of 128,256 tokens from scores that are drawn at random, and measures what is
done for a token beside the model: its mask, the masked scores, and taking it in. `answers` runs the engine with random
weights on ten schemas and checks every answer with jsonschema. Both need the extra [test].
"""

import argparse
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import torch
from full_checkpoint import make_tokenizer
from ten_schemas import TEN_SCHEMAS
from tiny_checkpoints import write_tiny_checkpoint

from llava_mini_cli.config import GenerationOptions, Grammar
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.grammars import Grammars
from llava_mini_cli.engine.llm.token_masks import TokenMasks
from llava_mini_cli.engine.request import Answer, FeatureChunk, Request
from llava_mini_cli.engine.scheduler import Limits
from llava_mini_cli.media.clip import FrameChunk
from llava_mini_cli.model import LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini_cli.model.prompt_layouts import PromptBuilder

VOCABULARY = 128_256
MOST_TOKENS = 256
TEXT = re.compile(r'"(\\.|[^"\\])*"')  # of JSON
HELD = {name: Grammar("json_schema", json.dumps(schema)) for name, schema in TEN_SCHEMAS.items()}
SPEAKING = Grammar(  # long texts, in which most of the vocabulary may come
    "json_schema",
    json.dumps(
        {
            "type": "object",
            "properties": {"note": {"type": "string", "maxLength": 400}, "tags": {"type": "array", "maxItems": 9}},
            "required": ["note", "tags"],
            "additionalProperties": False,
        }
    ),
)


def masks(rounds: int) -> dict[str, Any]:
    """Microseconds a token, of answers one by one."""
    prompts: Any = PromptBuilder(make_tokenizer(VOCABULARY))
    ends = [prompts.tokenizer.convert_tokens_to_ids(token) for token in ("<|end_of_text|>", "<|eot_id|>")]
    known, began = Grammars(prompts, ends, VOCABULARY), time.perf_counter()
    known.check(HELD["flat"])
    found: dict[str, Any] = {"vocabulary": VOCABULARY, "tokenizer_s": round(time.perf_counter() - began, 2)}
    began = time.perf_counter()
    for grammar in (*HELD.values(), SPEAKING):
        known.check(grammar)
    found["check_ms_a_grammar"] = round((time.perf_counter() - began) * 1e3 / len(HELD), 1)
    generator = torch.Generator().manual_seed(0)
    plain: list[float] = []
    for kind, agreed in (("random_scores", False), ("allowed_token_is_likeliest", True)):
        spent: list[float] = []
        for _ in range(rounds):
            for grammar in (*HELD.values(), SPEAKING):
                spent += _answer(known, grammar, set(ends), generator, agreed, plain)
        found[kind] = _spread(spent)
    found["argmax_alone"] = _spread(plain)
    return found


def _answer(
    known: Grammars, grammar: Grammar, ends: set[int], generator: torch.Generator, agreed: bool, plain: list[float]
) -> Iterator[float]:
    """Seconds that each token of an answer takes beside the model.

    Args:
        agreed: the model's likeliest token is one that the grammar allows, as of a model that knows what is asked.
    """
    token_masks, matcher, tokens = TokenMasks(), known.matcher(grammar), list[int]()
    one: Any = SimpleNamespace(matcher=matcher, tokens=tokens, takes_likeliest=True)
    peek, mask = known.matcher(grammar), np.zeros(VOCABULARY // 32, np.uint32)
    while len(tokens) < MOST_TOKENS:
        scores = torch.randn(1, VOCABULARY, generator=generator)
        if agreed:
            peek.fill(tokens, mask)
            may = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            scores[0, int(may[int(torch.randint(len(may), (), generator=generator))])] = 99.0
        began = time.perf_counter()
        likeliest = scores.max(-1)[1].tolist()
        plain.append(time.perf_counter() - began)
        began = time.perf_counter()
        held = token_masks.hold([one], scores, likeliest)
        token = held[0].likeliest if held else likeliest[0]  # pyright: ignore[reportAttributeAccessIssue]
        is_over = token in ends or matcher.is_whole(tokens, token)
        spent = time.perf_counter() - began
        tokens.append(token)
        yield spent
        if is_over:
            return


def _spread(seconds: list[float]) -> dict[str, Any]:
    us = np.array(seconds) * 1e6
    return {
        "tokens": len(us),
        "median_us": round(float(np.median(us)), 1),
        "mean_us": round(float(us.mean()), 1),
        "p99_us": round(float(np.percentile(us, 99)), 1),
        "largest_us": round(float(us.max()), 1),
    }


class _Still:
    """One picture of noise."""

    def __init__(self, seed: int, side: int) -> None:
        pixels = np.random.default_rng(seed).integers(0, 256, (1, side, side, 3)).astype(np.uint8)
        self.chunk = FrameChunk(pixels, np.zeros(1))

    def __iter__(self) -> Iterator[FrameChunk | FeatureChunk]:
        yield self.chunk

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        pass


def answers(count: int) -> dict[str, Any]:
    """What came of so many answers of random weights, at a temperature of 1; ten to a picture, one for each schema."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_tiny_checkpoint(folder)
        model = LlavaMiniForConditionalGeneration.from_pretrained(checkpoint)
        processor = LlavaMiniProcessor.from_pretrained(checkpoint)
    names = list(HELD)
    limits = Limits(chunk_frames=8, generations=64, media=16, cache_bytes=1 << 30)
    prompts = tuple(f"What is {name}?" for name in names)

    def requests(held: bool) -> Iterator[Request]:
        for number in range(count // len(names)):
            options = GenerationOptions(max_new_tokens=MOST_TOKENS, temperature=1.0, seed=number)
            given = tuple(HELD.values()) if held else ()
            source = _Still(number, model.config.video_frame_size)
            yield Request(str(number), "image", source, prompts, options, grammars=given)

    engine = Engine(model, processor, processor.prompts("trained"), limits)
    began, told = time.perf_counter(), Counter[str]()
    tokens = 0
    for outcome in engine.run(requests(held=True)):
        if not isinstance(outcome, Answer):
            told[f"failure {outcome.error_type}"] += 1
            continue
        tokens += outcome.completion_tokens
        told[outcome.finish_reason] += 1
        if outcome.finish_reason != "stop":
            continue
        name = names[outcome.prompt_index]
        value = json.loads(outcome.text)
        told["valid"] += jsonschema.Draft202012Validator(TEN_SCHEMAS[name]).is_valid(value)
        told["white space between tokens"] += bool(re.search(r"\s", re.sub(TEXT, "", outcome.text)))
        told["run of white space"] += bool(re.search(r"\s\s", outcome.text))
    return {"answers": count, "tokens": tokens, "seconds": round(time.perf_counter() - began, 1), **told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("masks", "answers"))
    parser.add_argument("--rounds", type=int, default=10, help="answers to each schema (masks)")
    parser.add_argument("--count", type=int, default=1000, help="answers in all, a multiple of ten (answers)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, help="file of results that this one is put into")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found = masks(given.rounds) if given.what == "masks" else answers(given.count)
    found |= {"threads": given.threads, "date": date.today().isoformat()}
    print(json.dumps(found))
    if given.write:
        known = json.loads(given.write.read_text()) if given.write.exists() else {}
        given.write.write_text(json.dumps(known | {given.what: found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
