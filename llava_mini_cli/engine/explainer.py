"""Evidence for answers, by exact ablation: each is scored again with one part of its medium left out after the other.

    answers of a window -> [prefill without a part, score what was said] -> answers with evidence

A part of a video is a piece of its window, of which the sums are there: its frames' tokens leave the prefix, its fused
text leaves the mean. A part of a picture is a block of patches, which compressor and pre-fusion do not see then. What
is to be done is handed out in pieces (`work`). Knows nothing of how answers come about.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from math import isfinite

import torch

from llava_mini_cli.engine.encode import encode_features
from llava_mini_cli.engine.language_model import NOT_FINITE, PrefillItem
from llava_mini_cli.engine.left_out import picture_blocks
from llava_mini_cli.engine.llm.branches import HEAD_POSITIONS, Branches, log_likelihoods
from llava_mini_cli.engine.llm.generate import prefill
from llava_mini_cli.engine.llm.kv_cache import RowCache
from llava_mini_cli.engine.pack import without
from llava_mini_cli.engine.request import Answer, Box, Evidence, LeftOut, Outcome
from llava_mini_cli.engine.track import Complete, Track, items_of, prefill_items
from llava_mini_cli.engine.window_sum import WindowSum
from llava_mini_cli.engine.work import More, Piece
from llava_mini_cli.engine.work_room import WorkRoom
from llava_mini_cli.errors import ItemError
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration
from llava_mini_cli.model.prompt_layouts import PromptBuilder
from llava_mini_cli.pieces import PieceLayout

SCORED_POSITIONS = 2048  # positions of prefixes and questions that are scored at once
NOTHING, EVERYTHING = -1, -2  # what is left out, where it is no single part

Unit = tuple[int, tuple[int, ...]]  # what is left out, and the prompts whose answers are scored then
Row = tuple[int, int]  # a prompt, and the row of a cache that it is in


@dataclass(eq=False)
class Explained:
    """A window whose answers are to be explained."""

    track: Track
    window: WindowSum
    layout: PieceLayout
    waiting: set[int]  # prompts that are not answered yet
    answers: dict[int, Answer] = field(default_factory=dict[int, Answer])  # of prompts
    scores: dict[tuple[int, int], float] = field(default_factory=dict[tuple[int, int], float])  # of part and prompt
    failed: set[int] = field(default_factory=set[int])  # prompts for which there was no memory

    @cached_property
    def blocks(self) -> tuple[list[torch.Tensor], tuple[Box, ...]]:
        """For a picture, the patches that are seen without each block, bool `[P]`, and the blocks' boxes."""
        features, size = self.track.features, self.track.request.size
        if features is None or size is None:
            return [], ()
        numbers, boxes = picture_blocks(self.layout, size, round(features.shape[2] ** 0.5))
        block = torch.from_numpy(numbers).to(features.device)
        return [block != number for number in range(len(boxes))], boxes

    @property
    def parts(self) -> list[int]:
        """The parts that hold something and can be left out, by their number."""
        if self.window.pieces is not None:
            return self.window.pieces.filled
        return [number for number, seen in enumerate(self.blocks[0]) if not bool(seen.all())]

    def left_out(self, part: int, score: float) -> LeftOut:
        """A part for its row."""
        if self.window.pieces is None:
            return LeftOut(score, box=self.blocks[1][part])
        start, end = self.window.pieces.cuts[part : part + 2]
        return LeftOut(score, start, end)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        pieces, features = self.window.pieces, self.track.features
        held = (pieces.nbytes if pieces else 0) + (features.nbytes if features is not None else 0)
        return held + self.window.tokens.nbytes

    def leaves_nothing(self, part: int) -> bool:
        """True if there is nothing else to look at."""
        if self.window.pieces is not None:
            return self.window.pieces.filled == [part]
        return not bool(self.blocks[0][part].any())


class Explainer:
    """Holds answers back until their evidence is there."""

    def __init__(
        self,
        model: LlavaMiniForConditionalGeneration,
        prompts: PromptBuilder,
        layout: PieceLayout,
        room: WorkRoom,
        ends: Iterable[int],
    ) -> None:
        """Args: layout: how pictures are cut. ends: the tokens that end an answer."""
        self.done: list[Outcome] = []  # to be handed out
        self._model = model
        self._prompts = prompts
        self._layout = layout
        self._room = room
        self._ends = sorted(ends)
        self._held: dict[tuple[str, int, int], Explained] = {}  # by request, window and prompt
        self._ready: deque[Explained] = deque()  # all answers are there

    @property
    def has_work(self) -> bool:
        """True if all answers about some window are there, and are to be explained."""
        return bool(self._ready)

    @property
    def nbytes(self) -> int:
        """Bytes of all windows that are held."""
        return sum({id(one): one.nbytes for one in (*self._held.values(), *self._ready)}.values())

    def keep(self, complete: Complete) -> bool:
        """Keeps a window that was prefilled, if evidence is wanted of it."""
        track, window = complete
        if window.pieces is None and track.request.size is None:
            return False
        one = Explained(track, window, self._layout, set(window.prompts))
        for prompt in window.prompts:
            self._held[track.request.key, window.index, prompt] = one
        return True

    def take(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Keeps the answers that are to be explained; returns all others."""
        others: list[Outcome] = []
        for outcome in outcomes:
            one = self._held.pop((outcome.key, outcome.window_index, outcome.prompt_index), None)
            if one is not None:
                one.waiting.discard(outcome.prompt_index)
            if one is None or not isinstance(outcome, Answer):
                others.append(outcome)
            else:
                one.answers[outcome.prompt_index] = outcome
            if one is not None and not one.waiting:
                if one.answers:
                    self._ready.append(one)
                else:
                    one.window.release()
        return others

    def step(self) -> More:
        """The evidence of one window's answers."""
        one = self._ready[0]
        asked = tuple(one.answers)
        parts = [part for part in one.parts if not one.leaves_nothing(part)]
        units: list[Unit] = [(part, asked) for part in (NOTHING, *parts)] + [(EVERYTHING, (each,)) for each in asked]
        size = len(one.window.tokens) + sum(one.track.pack_of(one.window).prompt_lengths[each] for each in asked)
        count = max(1, SCORED_POSITIONS // size)
        batches = [units[start : start + count] for start in range(0, len(units), count)]
        ending = Piece(partial(self._end, one), partial(self._fail, one, asked))
        following = [*(self._scoring(one, batch) for batch in batches), ending]
        self._ready.popleft()
        return following

    def close(self) -> None:
        """Lets go of everything."""
        self._held.clear()
        self._ready.clear()
        self.done.clear()

    def _scoring(self, one: Explained, units: Sequence[Unit]) -> Piece:
        asked = [prompt for _, prompts in units for prompt in prompts]
        halves = lambda: [self._scoring(one, half) for half in _halves(units)]  # noqa: E731
        return Piece(partial(self._score, one, units), partial(self._fail, one, asked), halves)

    @torch.inference_mode()
    def _score(self, one: Explained, units: Sequence[Unit]) -> More:
        """How likely each answer is, in each unit."""
        items: list[PrefillItem] = []
        asked: list[tuple[int, int, int]] = []  # part, prompt, number of its item; in the order of slots
        for part, prompts in units:
            prompts = [prompt for prompt in prompts if prompt not in one.failed]
            for item, own in self._items(one, part, prompts):
                asked += [(part, prompt, len(items)) for prompt in own]
                items.append(item)
        if not items:
            return ()
        prefix, rows = max(item.prefix.shape[0] for item in items), max(len(item.tails) for item in items)
        self._room.prefill(len(items), prefix, max(sum(map(len, item.tails)) for item in items), rows)
        cache, logits = prefill(self._model, items)
        slots = _slots([number for _, _, number in asked], cache.rows_per_medium)
        answers = [one.answers[prompt] for _, prompt, _ in asked]
        found = self._likelihoods(cache, slots, logits[slots], answers)
        one.scores.update({(part, prompt): score for (part, prompt, _), score in zip(asked, found, strict=True)})
        return ()

    def _items(self, one: Explained, part: int, prompts: Sequence[int]) -> list[tuple[PrefillItem, list[int]]]:
        """What the language model reads where a part is left out, and the prompts in it."""
        if part == EVERYTHING:
            return [(self._blind(one.track.request.prompts[prompt]), [prompt]) for prompt in prompts]
        if not prompts:
            return []
        window = replace(one.window, groups=without(one.window.groups, set(one.window.prompts) - set(prompts)))
        return list(zip(self._left(one, window, part), [list(group.prompts) for group in window.groups], strict=True))

    def _left(self, one: Explained, window: WindowSum, part: int) -> list[PrefillItem]:
        """A window without a part."""
        track, pieces = one.track, window.pieces
        if part == NOTHING:
            return prefill_items(track, window)
        if pieces is not None:
            text = pieces.mean_without(part).to(window.tokens.dtype)
            return items_of(track, window, text, pieces.tokens_without(part, window.tokens))
        assert track.features is not None
        pack = track.pack_of(window)
        self._room.encode(1, len(pack))
        encoded = encode_features(self._model.model, track.features, [pack], seen=one.blocks[0][part])
        return items_of(track, window, encoded.fused[0].float().to(window.tokens.dtype), encoded.tokens[0])

    def _blind(self, question: str) -> PrefillItem:
        """A question as text alone, as the model's `generate` takes it."""
        ids = torch.tensor(self._prompts.text_ids(question), device=self._model.device)
        return PrefillItem.of_text(self._model.model.embed_text(ids))

    def _likelihoods(
        self, cache: RowCache, rows: Sequence[int], first: torch.Tensor, answers: Sequence[Answer]
    ) -> list[float]:
        """The log-likelihood of each answer behind its row, whose first token has the scores `[n, vocab]`."""
        said = [answer.token_ids for answer in answers]
        found = first.float().log_softmax(-1)[:, self._ends].double().logsumexp(-1).tolist()  # of nothing but an end
        spoken = [number for number, tokens in enumerate(said) if tokens]
        if not spoken:
            return found
        tokens, seen = (
            sum(len(said[number]) for number in spoken),
            int((cache.prefix_lengths + cache.own_lengths.max()).max()),
        )
        self._room.score(tokens, seen, min(tokens, HEAD_POSITIONS) * self._model.config.vocab_size)
        trees = [self._branches(rows[number], answers[number]) for number in spoken]
        scores = log_likelihoods(self._model, cache, trees, first[spoken], self._ends)
        for number, (score,) in zip(spoken, scores, strict=True):
            found[number] = score.score
        return found

    def _branches(self, row: int, answer: Answer) -> Branches:
        """The tokens of an answer as the model writes them. What it writes before a choice is taken as said."""
        header = [] if answer.choice_probs is None else self._prompts.header_ids()
        has_end = answer.finish_reason == "stop"
        return Branches.of(row, [[*header, *answer.token_ids]], len(header), has_end)

    def _end(self, one: Explained) -> More:
        """Everything about a window was scored."""
        done: list[Outcome] = []
        for prompt, answer in one.answers.items():
            if prompt in one.failed:
                continue
            blind = one.scores[EVERYTHING, prompt]
            parts = tuple(one.left_out(part, one.scores.get((part, prompt), blind)) for part in one.parts)
            evidence = Evidence(one.scores[NOTHING, prompt], blind, parts)
            if all(map(isfinite, (evidence.seen, blind, *(part.score for part in parts)))):
                done.append(replace(answer, evidence=evidence))
            else:
                done.append(one.track.request.failure(prompt, one.window.index, NOT_FINITE, "generate"))
        one.window.release()
        self.done += done
        return ()

    def _fail(self, one: Explained, prompts: Iterable[int]) -> More:
        """There is no memory for the evidence of some answers."""
        error = ItemError("out_of_memory", "the evidence of the answer does not fit the memory")
        failed = [prompt for prompt in dict.fromkeys(prompts) if prompt not in one.failed]
        failures = [one.track.request.failure(prompt, one.window.index, error, "generate") for prompt in failed]
        one.failed.update(failed)
        self.done += failures
        return ()


def _slots(numbers: Sequence[int], per_medium: int) -> list[int]:
    """The row of a cache that each tail is in, of those whose items have these numbers, in ascending order."""
    found: list[int] = []
    for place, number in enumerate(numbers):
        is_first = place == 0 or numbers[place - 1] != number
        found.append(number * per_medium if is_first else found[-1] + 1)
    return found


def _halves(units: Sequence[Unit]) -> list[Sequence[Unit]]:
    """The units in two, or the prompts of a single one; none of a single prompt."""
    if len(units) > 1:
        return [units[: len(units) // 2], units[len(units) // 2 :]]
    ((part, prompts),) = units
    half = len(prompts) // 2
    return [[(part, prompts[:half])], [(part, prompts[half:])]] if half else []
