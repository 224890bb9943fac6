"""Grammars that answers are held to, through llguidance: made once, with a matcher for each answer. No torch.

A matcher says which tokens may come next, and follows what the answer holds; `token_masks` masks the scores.
"""

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.config import Grammar
from llava_mini_cli.engine.grammar_check import llguidance, one_line, refused_by, source
from llava_mini_cli.engine.grammar_trial import limits
from llava_mini_cli.errors import ItemError, LlavaMiniError, PromptError, UsageError, is_fault
from llava_mini_cli.model.prompt_layouts import PromptBuilder

MOST_KEPT = 256  # grammars that are remembered once they are compiled
_SILENT = 0  # log level

Mask = NDArray[np.uint32]  # [ceil(vocabulary / 32)], a bit for each token, the lowest first


class Grammars:
    """The grammars of one model's answers. The tokenizer is read when the first of them is wanted."""

    def __init__(self, prompts: PromptBuilder, end_ids: Collection[int], vocabulary: int) -> None:
        """Args:
        end_ids: the tokens that end an answer.
        vocabulary: tokens that the model has scores of.
        """
        self.vocabulary = vocabulary
        self._end_ids = frozenset(end_ids)
        self._prompts = prompts
        self._known: dict[Grammar, Any] = {}

    def check(self, grammar: Grammar) -> None:
        """Makes sure that answers can be held to a grammar.

        Raises:
            PromptError: llguidance refuses it, or this model has no token that an answer could begin with.
            UsageError: llguidance is not there, or this model's tokenizer is none that it knows.
        """
        if grammar in self._known:
            return
        try:
            words = refused_by(grammar)
        except UsageError:
            raise
        except LlavaMiniError as error:
            raise PromptError("no_resources", str(error)) from error
        if words is not None:
            raise PromptError("bad_schema", f"answers cannot be held to the schema: {words}")
        self.state(grammar)

    def matcher(self, grammar: Grammar) -> "Matcher":
        """A matcher for a new answer."""
        return Matcher(self, grammar, tuple(self._prompts.header_ids()))

    def state(self, grammar: Grammar, *, alone: bool = False) -> Any:
        """llguidance's own matcher at the beginning of an answer, of a grammar that was checked.

        It shares what is known of the grammar with other answers, and what may be spent on it.

        Args:
            alone: make the grammar anew, so that nothing was spent on other answers.

        Raises:
            PromptError: this model has no token that an answer could begin with.
            UsageError: as `check` does.
        """
        if alone:
            self._known.pop(grammar, None)
        found = self._known.get(grammar)
        if found is None:
            found = self._made(grammar)
            if len(self._known) >= MOST_KEPT:
                self._known.clear()
            self._known[grammar] = found
        return found.deep_copy()

    def fill(self, state: Any, mask: Mask) -> str | None:
        """Sets the bits of the tokens that may come next. Returns why there are none; None where there are some."""
        size = (self._tokenizer.vocab_size + 31) // 32
        whole = mask if len(mask) == size else np.empty(size, np.uint32)
        state.unsafe_compute_mask_ptr(whole.ctypes.data, whole.nbytes)
        if whole is not mask:
            mask[:] = whole[: len(mask)]
        if self.vocabulary % 32:
            mask[-1] &= np.uint32((1 << self.vocabulary % 32) - 1)
        if state.is_error():
            return one_line(state.get_error())
        if not mask.any() or (state.is_stopped() and not state.is_accepting()):
            return "the model has no token for what must come next"
        return None

    def text(self, tokens: Sequence[int]) -> str:
        """The characters of tokens, as the grammar has them; half of one at the end is left out."""
        said = b"".join(self._tokenizer.decode_bytes([token]) for token in tokens)
        return said.decode("utf-8", "ignore").removeprefix(self._gap)

    def _made(self, grammar: Grammar) -> Any:
        library, tokenizer = llguidance(), self._tokenizer
        made = library.LLMatcher(tokenizer, source(grammar, self._gap), log_level=_SILENT, limits=limits(library))
        words = one_line(made.get_error()) or self.fill(made, np.empty((self.vocabulary + 31) // 32, np.uint32))
        if words is not None:
            raise PromptError("bad_schema", f"answers cannot be held to the schema: {words}")
        return made

    @cached_property
    def _gap(self) -> str:
        """What stands between the prompt and the answer and is written by the model."""
        return " " if self._prompts.family == "vicuna" else ""

    @cached_property
    def _tokenizer(self) -> Any:
        """The model's tokenizer as llguidance has it: the bytes of each token."""
        library, own = llguidance(), getattr(self._prompts.tokenizer, "backend_tokenizer", None)
        if not self._end_ids:
            raise UsageError("--schema: this model's generation_config.json names no token that ends an answer")
        if own is None:
            raise UsageError("--schema: this model's tokenizer does not tell the bytes of its tokens")
        size = max(self.vocabulary, 1 + max(own.get_vocab(with_added_tokens=True).values()))
        try:
            return library.LLTokenizer(own.to_str(), n_vocab=size, eos_token=sorted(self._end_ids))
        except BaseException as error:
            if not is_fault(error) or isinstance(error, MemoryError):
                raise
            raise UsageError(f"--schema: this model's tokenizer cannot be used: {one_line(str(error))}") from error


class Matcher:
    """What one answer may hold next. It follows the answer's tokens wherever they went, also back."""

    def __init__(self, grammars: Grammars, grammar: Grammar, header: tuple[int, ...]) -> None:
        """`header`: tokens that come before what the grammar is about."""
        self._grammars = grammars
        self._grammar = grammar
        self._header = header
        self._state: Any = None
        self._said: list[int] = []  # what the state has taken

    def fill(self, tokens: Sequence[int], mask: Mask) -> ItemError | None:
        """Sets the bits of the tokens that may come behind `tokens`.

        Returns:
            Why there are none; None where there are some.
        """
        if len(tokens) < len(self._header):
            token = self._header[len(tokens)]
            mask[:] = 0
            mask[token // 32] = np.uint32(1 << token % 32)
            return None
        said = list(tokens[len(self._header) :])
        words = self._grammars.fill(self._state_behind(said), mask)
        if words is not None:  # what others spent of the grammar's limits is not held against this answer
            self._state, self._said = self._grammars.state(self._grammar, alone=True), []
            words = self._grammars.fill(self._state_behind(said), mask)
        return (
            None if words is None else ItemError("bad_schema", f"the answer cannot go on as the schema asks: {words}")
        )

    def is_whole(self, tokens: Sequence[int], token: int) -> bool:
        """True if nothing may come behind `tokens` and one more `token` but the end."""
        if len(tokens) < len(self._header):
            return False
        state = self._state_behind([*tokens[len(self._header) :], token])
        return state.is_stopped() and not state.is_error()

    def text(self, tokens: Sequence[int]) -> str:
        """The answer that tokens make."""
        return self._grammars.text(tokens[len(self._header) :])

    def _state_behind(self, said: list[int]) -> Any:
        if self._state is None or said[: len(self._said)] != self._said:
            self._state, self._said = self._grammars.state(self._grammar), []
        more = said[len(self._said) :]
        if more:
            self._state.consume_tokens(more)
            self._said = said
        return self._state
