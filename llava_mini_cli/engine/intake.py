"""A request on its way into the engine: its prompts as packs of ids, in pieces that may run out of memory.

Only a prompt for which there is no memory by itself fails. Knows nothing of frames.
"""

from collections.abc import Callable, Sequence
from functools import partial

from llava_mini_cli.config import GenerationOptions
from llava_mini_cli.engine.admit import ContextLimit, admit, new_tokens, passes
from llava_mini_cli.engine.grammars import Grammars
from llava_mini_cli.engine.labels import LabelIds
from llava_mini_cli.engine.pack import TextPack, pack_prompts
from llava_mini_cli.engine.request import Failure, Request
from llava_mini_cli.engine.track import Track
from llava_mini_cli.engine.work import More, Piece
from llava_mini_cli.errors import ItemError
from llava_mini_cli.model.prompt_layouts import PromptBuilder

OfPrompts = Callable[[Sequence[int]], More]


class Intake:
    """Makes a track of a request. `failures` are those of prompts that cannot be asked; None is `track` if none can."""

    def __init__(
        self,
        request: Request,
        prompts: PromptBuilder,
        context: ContextLimit,
        labels: LabelIds,
        grammars: Grammars,
    ) -> None:
        self.failures: list[Failure] = []
        self.track: Track | None = None
        self._request = request
        self._prompts = prompts
        self._context = context
        self._labels = labels
        self._grammars = grammars
        self._ids: list[list[int] | None] = [None] * len(request.prompts)
        self._packs: list[TextPack] = []
        self._refused: dict[int, tuple[ItemError, str]] = {}

    def piece(self, accept: Callable[[GenerationOptions], None]) -> Piece:
        """The work; `track` and `failures` are there behind it. `accept` gets the engine ready for the options."""
        everything = range(len(self._request.prompts))

        def begin() -> More:
            accept(self._request.generation)
            return [
                self._of(self._admit, everything),
                Piece(self._deal_out, partial(self._refuse, everything)),
                Piece(self._make_track, partial(self._refuse, everything)),
            ]

        return Piece(begin, partial(self._refuse, everything))

    def _of(self, function: OfPrompts, prompts: Sequence[int]) -> Piece:
        half = len(prompts) // 2
        parts = (prompts[:half], prompts[half:]) if half else ()
        return Piece(
            partial(function, prompts),
            partial(self._refuse, prompts),
            lambda: [self._of(function, part) for part in parts],
        )

    def _admit(self, prompts: Sequence[int]) -> More:
        ids, failures = admit(self._request, self._prompts, self._context, prompts, self._labels, self._grammars)
        for prompt, found in zip(prompts, ids, strict=True):
            self._ids[prompt] = found
        self.failures += failures
        for one in failures:
            self._refused[one.prompt_index] = ItemError(one.error_type, one.message), one.stage
        return ()

    def _deal_out(self) -> More:
        dealt = passes(self._ids)
        return [self._of(self._pack, [index for index, ids in enumerate(part) if ids is not None]) for part in dealt]

    def _pack(self, prompts: Sequence[int]) -> More:
        wanted = set(prompts)
        self._packs.append(pack_prompts([ids if index in wanted else None for index, ids in enumerate(self._ids)]))
        return ()

    def _refuse(self, prompts: Sequence[int]) -> More:
        error = ItemError("out_of_memory", "the prompt does not fit the memory")
        known = {failure.prompt_index for failure in self.failures}
        failed = [prompt for prompt in prompts if prompt not in known]
        failures = [failure for prompt in failed for failure in self._request.failures(prompt, error, "prompt")]
        for prompt in failed:
            self._ids[prompt] = None
            self._refused[prompt] = error, "prompt"
        self.failures += failures
        return ()

    def _make_track(self) -> More:
        if self._packs and (any(self._ids) or self._request.sink is not None):
            asked = [prompt for prompt, ids in enumerate(self._ids) if ids]
            new = {prompt: new_tokens(self._request, prompt, self._labels) for prompt in asked}
            self.track = Track(self._request, self._packs, iter(self._request.frames), new_tokens=new)
            for prompt, (error, stage) in self._refused.items():
                self.track.refuse([prompt], error, stage)
        return ()
