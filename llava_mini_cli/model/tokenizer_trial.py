"""A tokenizer and a chat template tried in a process of its own, with bounds on time and memory.

A regular expression of a tokenizer may panic, a template may never end or fill the memory. Run as a script with JSON on
standard input, it says on standard output what it begins, and what went wrong. Imports nothing of the package but its
bounds.
"""

import json
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from llava_mini_cli.trial_process import bound

CPU_SECONDS = 6  # tens of times what a tokenizer of 128,000 tokens takes
MOST_TEXT = 1 << 20  # characters of a prompt
LETTERS = " ".join(chr(code) for code in range(33, 127))  # each may be one that a normalizer makes many of
SAMPLE = f"What's in the 2 pictures?  Describe them\n\n'now', naïve ÄÖ 漢字 🙂 {'a' * 60}{'!' * 60} {LETTERS}"
MOST_TOKENS = 16 * len(SAMPLE)  # of the sample: a letter is at most a few bytes, each a token
HEADER = "<|start_header_id|>"  # Llama 3 has it; other families do not use the template
GENERATION = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")  # a tag of transformers that changes no text


def try_tokenizer(directory: Path) -> bool:
    """Splits a sample. True if the prompts of this tokenizer are made by its template."""
    if (directory / "tokenizer.json").exists():
        say("begins", directory / "tokenizer.json")
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        tokenizer.decode(_checked(tokenizer.encode(SAMPLE).ids))
        return HEADER in tokenizer.get_vocab()
    if (directory / "vocab.json").exists() and (directory / "merges.txt").exists():
        say("begins", directory / "vocab.json")
        from tokenizers import Tokenizer, models

        pieces = models.BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt"))
        _checked(Tokenizer(pieces).encode(SAMPLE).ids)
    if (directory / "tokenizer.model").exists():
        say("begins", directory / "tokenizer.model")
        from sentencepiece import SentencePieceProcessor

        make: Any = SentencePieceProcessor
        _checked(make(model_file=str(directory / "tokenizer.model")).encode(SAMPLE))
    return False


def _checked(ids: Any) -> Any:
    """The tokens of the sample. Raises `ValueError` where there are so many that a prompt would fill the memory."""
    if len(ids) > MOST_TOKENS:
        raise ValueError(f"it makes {len(ids)} tokens of {len(SAMPLE)} characters")
    return ids


def conversation(has_image: bool) -> list[dict[str, Any]]:
    """What a template is given: texts, or a question about an image as a processor asks it."""
    if has_image:
        return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": SAMPLE}]}]
    return [{"role": "system", "content": SAMPLE}, {"role": "user", "content": SAMPLE}]


def try_template(template: str, tokens: dict[str, Any], turns: list[dict[str, Any]]) -> None:
    """Renders a conversation as transformers does, with and without the assistant's header."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _tojson
    given: dict[str, Any] = {
        "raise_exception": _raise,
        "strftime_now": _now,
        "tools": None,
        "documents": None,
        **tokens,
    }
    compiled = environment.from_string(GENERATION.sub("", template))
    for header in (True, False):
        length = 0
        for piece in compiled.generate(**given, messages=turns, add_generation_prompt=header):
            length += len(piece)
            if length > MOST_TEXT:
                raise ValueError(f"it writes more than {MOST_TEXT} characters")


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _raise(message: str) -> NoReturn:
    raise ValueError(message)


def say(what: str, words: object) -> None:
    """One line for the process that waits."""
    sys.stdout.write(json.dumps([what, str(words)]) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Tries what standard input names; ends with 0 whatever was found."""
    bound(CPU_SECONDS)
    asked = json.loads(sys.stdin.read())
    try:
        directory = asked["directory"]  # null: the template alone is tried
        takes_template = directory is None or try_tokenizer(Path(directory))
        if takes_template and asked["template"] is not None:
            say("begins", f"{asked['place']}: chat_template")
            try_template(asked["template"], asked["tokens"], conversation(asked["has_image"]))
        say("done", "")
    except BaseException as error:  # noqa: BLE001 - a panic of the tokenizer is no Exception
        say("failed", f"{type(error).__name__}: {error}"[:300])


if __name__ == "__main__":
    main()
