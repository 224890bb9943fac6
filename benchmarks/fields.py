"""Answers held to schemas: whether they are what the schema asks for, how often they are right, and what they cost.

    python benchmarks/fields.py demo            200 held-out scenes of the demo world, by fields and by json
    python benchmarks/fields.py random          1,000 answers of a model with random weights, held to ten schemas
    python benchmarks/fields.py random --count 50

Results go to benchmarks/results/fields.json.
"""

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jsonschema
import numpy as np
from full_size import processor
from PIL import Image
from tiny_checkpoints import write_tiny_checkpoint

from llava_mini_cli.config import GenerationOptions, ModelOptions, SamplingOptions, SchemaWay
from llava_mini_cli.demo import model_dir
from llava_mini_cli.demo.render import random_look, render
from llava_mini_cli.demo.scenes import (
    BACKGROUNDS,
    CANVAS,
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    generator,
    random_scene,
)
from llava_mini_cli.formats.job import Job, Prompt, Question
from llava_mini_cli.formats.row import Row
from llava_mini_cli.formats.schema.read_schema import answer_schema
from llava_mini_cli.formats.schema.short_form import from_short_form
from llava_mini_cli.pipelines.answer import answer
from llava_mini_cli.pipelines.load_engine import load_engine
from llava_mini_cli.pipelines.run_parts import AnswerEngine
from llava_mini_cli.pipelines.settings import RunOptions

RESULTS = Path(__file__).parent / "results" / "fields.json"
FIRST_SCENE = 5_000_000  # of the held-out stream; the card's questions are about others
RUN_OF_SPACES = re.compile(r"\s{2}")

# Questions in the words of the demo model's held-out templates; what is asked for as one text lists the same fields.
DEMO_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "shape": {"enum": list(SHAPES), "description": "What shape is the shape?"},
        "colour": {"enum": list(COLOURS), "description": "What colour is the shape?"},
        "size": {"enum": list(SIZES), "description": "What size is the shape?"},
        "place": {"enum": list(PLACES), "description": "Where is the shape?"},
        "count": {"type": "integer", "minimum": 0, "maximum": 9, "description": "How many shapes are there?"},
        "background": {"enum": list(BACKGROUNDS), "description": "What colour is the background?"},
    },
    "required": ["shape", "colour", "size", "place", "count", "background"],
    "additionalProperties": False,
    "description": "Describe the shape as JSON.",
}
LEARNT = ("shape", "colour", "size")  # which the demo model was trained to write as JSON, with spaces in it
_CAR = {
    "type": "object",
    "properties": {"make": {"type": "string"}, "doors": {"type": "integer", "minimum": 2, "maximum": 5}},
}
RANDOM_SCHEMAS: dict[str, Any] = {
    "labels": from_short_form("light day|night|dusk, dark bool, sure low|middle|high?"),
    "numbers": from_short_form("count int 0..20, share float 0..1, offset int -999..999, weight float"),
    "texts": from_short_form("note str(80), plate str?, code str(3)"),
    "lists": from_short_form("tags str[], counts int 0..9[], kinds car|bus|tram[]?"),
    "everything": from_short_form("shape circle|square, count int, dark bool, note str, plate str?, tags str[]"),
    "nested": {
        "type": "object",
        "properties": {"car": _CAR, "people": {"type": "array", "items": {"$ref": "#/$defs/person"}, "maxItems": 3}},
        "required": ["car", "people"],
        "$defs": {
            "person": {
                "type": "object",
                "properties": {"name": {"type": "string", "maxLength": 30}, "age": {"type": "integer", "minimum": 0}},
                "required": ["name"],
            }
        },
    },
    "list": {"type": "array", "items": {"type": "string", "maxLength": 20}, "minItems": 1, "maxItems": 4},
    "recursive": {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 10}, "inner": {"$ref": "#"}},
        "required": ["name"],
    },
    "patterns": {
        "type": "object",
        "properties": {
            "day": {"type": "string", "format": "date"},
            "plate": {"type": "string", "pattern": "^[A-Z]{1,3}-[0-9]{1,4}$"},
        },
        "required": ["day", "plate"],
    },
    "either": {"anyOf": [_CAR, {"type": "object", "properties": {"bus": {"type": "integer"}}, "required": ["bus"]}]},
}  # fmt: skip


def jobs_of(files: Iterable[Path]) -> Iterator[Job]:
    """A job for each picture, with a question of no words."""
    for file in files:
        yield Job(str(file), file.name, (Question(Prompt(""), file.name),))


def rows_of(engine: AnswerEngine, files: Iterable[Path], options: RunOptions) -> tuple[list[Row], float]:
    """The rows about pictures, and the seconds that they took."""
    began = time.monotonic()
    rows = list(answer(jobs_of(files), engine, options))
    return rows, time.monotonic() - began


# Random weights


def made_rows(
    engine: AnswerEngine, name: str, files: list[Path], options: RunOptions, way: SchemaWay | None = None
) -> list[Row]:
    """Rows of one of the schemas, drawn at random."""
    schema = answer_schema(RANDOM_SCHEMAS[name], way)
    generation = replace(options.generation, temperature=1.0)
    rows, _ = rows_of(engine, files, replace(options, generation=generation, schema=schema))
    return rows


def faults_of(schema: Any, rows: Iterable[Row]) -> list[str]:
    """What is wrong with rows that say they are well."""
    check = jsonschema.Draft202012Validator(schema)
    faults: list[str] = []
    for row in rows:
        if row.status == "error":
            if row.error_type != "invalid_json" or not row.text:
                faults.append(f"{row.error_type}: {row.error}")
            continue
        value = json.loads(row.json or "")
        faults += [error.message for error in check.iter_errors(value)]
        faults += [
            f"a run of white space: {row.json}" for text in texts_of(row.json, value) if RUN_OF_SPACES.search(text)
        ]
    return faults


def texts_of(text: str | None, value: Any) -> Iterator[str]:
    """A JSON text, and the texts in it."""
    yield text or ""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts_of("", inner)


def random_answers(count: int) -> dict[str, Any]:
    """`count` answers held to each of the ten schemas."""
    found: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        write_tiny_checkpoint(Path(folder, "model"))
        files = noise_pictures(Path(folder), count)
        model = ModelOptions(f"{folder}/model", device="cpu", dtype="float32")
        engine = load_engine(model)
        options = RunOptions(model, SamplingOptions(), GenerationOptions(max_new_tokens=256))
        for name, schema in RANDOM_SCHEMAS.items():
            rows = made_rows(engine, name, files, options)
            ends = Counter("valid" if row.status == "ok" else str(row.finish_reason) for row in rows)
            found[name] = {"rows": len(rows), **ends, "faults": faults_of(schema, rows)}
            print(f"{name:12} {found[name]}", flush=True)
    return found


def noise_pictures(folder: Path, count: int) -> list[Path]:
    """Pictures that differ from one another."""
    random = np.random.default_rng(1)
    files = [folder / f"{number:04}.png" for number in range(count)]
    for file in files:
        Image.fromarray(random.integers(0, 256, (48, 64, 3), np.uint8)).save(file)
    return files


# The demo world


def write_scenes(folder: Path, count: int) -> dict[str, Scene]:
    """Pictures of held-out scenes, every second one of a single shape, by their names."""
    scenes: dict[str, Scene] = {}
    for number in range(count):
        random = generator("heldout", FIRST_SCENE + number)
        scene = random_scene(random, "heldout", None if number % 2 else 1)
        edge = int(random.choice(CANVAS["heldout"]))
        name = f"{number:04}.png"
        Image.fromarray(render(scene, random_look(random, scene.background), edge, random)).save(folder / name)
        scenes[name] = scene
    return scenes


def demo_schemas() -> dict[str, tuple[dict[str, Any], SchemaWay]]:
    """What is compared: the whole schema each way, and what of it the model was trained to write."""
    fields = {name: DEMO_SCHEMA["properties"][name] for name in LEARNT}
    learnt = {**DEMO_SCHEMA, "properties": fields, "required": list(fields)}
    return {"fields": (DEMO_SCHEMA, "fields"), "json": (DEMO_SCHEMA, "json"), "json, learnt": (learnt, "json")}


def truth_of(scene: Scene) -> dict[str, Any]:
    """The fields of a scene that have a true value: those of the shape only where there is one."""
    truth: dict[str, Any] = {"count": len(scene.things), "background": scene.background}
    if len(scene.things) == 1:
        thing = scene.things[0]
        truth |= {name: getattr(thing, name) for name in ("shape", "colour", "size", "place")}
    return truth


def demo_answers(count: int) -> dict[str, Any]:
    """Accuracy by field and cost, each way."""
    found: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        scenes = write_scenes(Path(folder), count)
        files = [Path(folder, file) for file in scenes]
        model = ModelOptions(str(model_dir()), device="cpu", dtype="float32")
        engine = load_engine(model)
        options = RunOptions(model, SamplingOptions(), GenerationOptions(max_new_tokens=256))
        for name, (given, way) in demo_schemas().items():
            schema = answer_schema(given, way)
            rows_of(engine, files[:10], replace(options, schema=schema))  # warm
            rows, seconds = rows_of(engine, files, replace(options, schema=schema))
            right, asked = Counter[str](), Counter[str]()
            for row in rows:
                said = json.loads(row.json) if row.json else {}
                for field, value in truth_of(scenes[row.id]).items():
                    if field in given["properties"]:
                        asked[field] += 1
                        right[field] += said.get(field) == value
            tokens = sum(row.completion_tokens or 0 for row in rows)
            found[name] = {
                "right": {field: f"{right[field]}/{asked[field]}" for field in given["properties"]},
                "all_fields": f"{right.total()}/{asked.total()}",
                "errors": sum(row.status == "error" for row in rows),
                "seconds": round(seconds, 1),
                "completion_tokens": tokens,
                "prompt_tokens": sum(row.prompt_tokens or 0 for row in rows),
            }
            print(name, json.dumps(found[name]), flush=True)
    return found


def main() -> None:
    """Measures, and keeps what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["demo", "random"])
    parser.add_argument("--count", type=int, help="scenes (200), or answers for each schema (100)")
    arguments = parser.parse_args()
    part, usual = (demo_answers, 200) if arguments.part == "demo" else (random_answers, 100)
    found = part(arguments.count or usual)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(
        json.dumps(
            {**kept, arguments.part: {"date": date.today().isoformat(), "machine": processor(), **found}}, indent=1
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
