"""The plain path of answers that are held to a grammar: one forward of the model, and every token tried alone.

Whether a token may come is found byte by byte, with llguidance's tokenizer of bytes and a fresh matcher: nothing is
known here of masks, of a model's tokenizer in llguidance, or of states that are shared.
"""

import json
from typing import Any

import llguidance
import numpy as np
import torch
from engine_oracle import Oracle

from llava_mini_cli.config import GenerationOptions, Grammar, PromptLayout
from llava_mini_cli.engine.llm.sampling import next_token, penalised, random_generator
from llava_mini_cli.engine.request import Answer

BYTES = llguidance.LLTokenizer("byte")
COMPACT = {"whitespace_flexible": False}


def token_bytes(tokenizer: Any) -> list[bytes | None]:
    """The bytes of each token of a transformers tokenizer; None for special ones, and where there is no token."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(hidden)}
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    is_byte_level = "ByteLevel" in tokenizer.backend_tokenizer.to_str()
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    found: list[bytes | None] = [None] * (1 + max(vocabulary.values()))
    for token, number in vocabulary.items():
        if number in special:
            continue
        if is_byte_level:
            found[number] = bytes(letters[letter] for letter in token)
        elif token.startswith("<0x"):
            found[number] = bytes([int(token[3:5], 16)])
        else:
            found[number] = token.replace("\u2581", " ").encode()
    return found


class Follower:
    """A text, byte by byte, that a grammar is about."""

    def __init__(self, grammar: Grammar) -> None:
        make = llguidance.LLMatcher
        if grammar.kind == "regex":
            source = make.grammar_from_regex(grammar.text)
        else:
            source = make.grammar_from_json_schema(grammar.text, overrides=COMPACT)
        self._source = source
        self._known: dict[bytes, Any] = {}  # behind the text that is asked about again and again
        self._allowed: dict[bytes, bool] = {}  # by texts of one byte more

    def _behind(self, said: bytes) -> Any:
        for length in range(len(said), -1, -1):
            known = self._known.get(said[:length])
            if known is not None:
                matcher = known.deep_copy()
                rest = list(said[length:])
                return matcher if matcher.try_consume_tokens(rest) == len(rest) else None
        self._known[b""] = llguidance.LLMatcher(BYTES, self._source, log_level=0)
        return self._behind(said)

    def keep(self, said: bytes) -> None:
        """Remembers a text that longer ones will be asked about."""
        matcher = self._behind(said)
        if matcher is not None:
            self._known[said] = matcher

    def allows(self, said: bytes) -> bool:
        """True if some text of the grammar begins so."""
        return self._behind(said) is not None

    def allows_behind(self, said: bytes, more: bytes) -> bool:
        """True if some text of the grammar begins with `said` and `more`; one bad first byte stands for all `more`."""
        first = said + more[:1]
        if first not in self._allowed:
            self._allowed[first] = self.allows(first)
        return self._allowed[first] and (len(more) < 2 or self.allows(said + more))

    def is_text(self, said: bytes) -> bool:
        """True if the grammar holds this text."""
        matcher = self._behind(said)
        return matcher is not None and matcher.is_accepting()

    def is_forced(self, said: bytes) -> bool:
        """True if only one byte may come behind this text."""
        matcher = self._behind(said)
        return matcher is not None and bool(matcher.compute_ff_bytes())

    def is_over(self, said: bytes) -> bool:
        """True if nothing may come behind this text."""
        matcher = self._behind(said)
        return matcher is not None and matcher.is_stopped()


def check_held(
    oracle: Oracle,
    pixels: np.ndarray,
    question: str,
    grammar: Grammar,
    options: GenerationOptions,
    answer: object,
    layout: PromptLayout = "trained",
) -> None:
    """Asserts that each token of an answer is the one that the plain model takes of those that may come.

    Where a grammar leaves one text alone, llguidance has it split as the tokenizer does; any split is taken for right.
    """
    assert isinstance(answer, Answer), answer
    prompts = oracle.processor.prompts(layout)
    ends = oracle.model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    text = {"text": question, "prompt_layout": layout}
    batch = oracle.processor(**({"images": pixels[0]} if len(pixels) == 1 else {"videos": pixels}), **text)
    tokens = list(answer.token_ids)
    with torch.inference_mode():
        given = batch["pixel_values"], batch["frame_counts"]
        asked, _, _ = oracle.model.prepare_embeddings(batch["input_ids"], None, *given, None, "left")
        embedded = torch.cat([asked, oracle.model.model.embed_text(torch.tensor([tokens]))], dim=1)
        every = oracle.model(inputs_embeds=embedded).logits[0, -len(tokens) - 1 :]
    pieces, follower, generator = token_bytes(prompts.tokenizer), Follower(grammar), random_generator(options)
    gap, header = b" " if prompts.family == "vicuna" else b"", prompts.header_ids()
    said = b""
    for place, scores in enumerate(every):
        inner = said[len(gap) :] if said.startswith(gap) and place >= len(header) else None
        if inner is not None:
            follower.keep(inner)
        if place == len(tokens):
            is_over = inner is not None and follower.is_over(inner)
            if answer.finish_reason == "length" or is_over:
                assert (answer.finish_reason, len(tokens) == options.max_new_tokens or is_over) == (
                    "stop" if is_over else "length",
                    True,
                )
                break
        assert place == 0 or inner is None or not follower.is_over(inner)
        allowed = torch.zeros(len(scores), dtype=torch.bool)
        for token, piece in enumerate(pieces[: len(scores)]):
            if not piece:
                continue
            if inner is not None:
                allowed[token] = follower.allows_behind(inner, piece)
            else:
                whole = said + piece
                allowed[token] = gap.startswith(whole) or (whole.startswith(gap) and follower.allows(whole[len(gap) :]))
        allowed[ends] = inner is not None and follower.is_text(inner)
        is_forced = inner is None or follower.is_forced(inner)
        if place < len(header):
            allowed = torch.arange(len(scores)) == header[place]
        scores = penalised(scores, tokens[:place], options.repetition_penalty).masked_fill(~allowed, -torch.inf)
        token = int(scores.argmax()) if generator is None else next_token(scores, options, generator)
        if place == len(tokens):
            assert (answer.finish_reason, token in ends) == ("stop", True)
            break
        assert allowed[tokens[place]], place
        assert is_forced or token == tokens[place], place
        if place >= len(header):
            said += pieces[tokens[place]] or b""
    assert answer.text == said[len(gap) :].decode("utf-8", "ignore")


def schema(value: object) -> Grammar:
    """A JSON Schema as a grammar."""
    return Grammar("json_schema", json.dumps(value))
