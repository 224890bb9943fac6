"""The answers about the media of a batch of columns: a callable for Ray Data, datasets and plain loops."""

from collections.abc import Sequence
from typing import Any

from llava_mini_cli.batch.batches import Asking
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.job import Prompt
from llava_mini_cli.pipelines.answer import answer
from llava_mini_cli.pipelines.load_engine import load_engine
from llava_mini_cli.pipelines.run_parts import AnswerEngine
from llava_mini_cli.pipelines.settings import RunOptions


class BatchModel:
    """What is asked about every batch, and the model that answers.

    The model is loaded when one is made. A pickled one is its options alone: where it is unpickled, the model is loaded
    at the first call.
    """

    def __init__(
        self,
        options: RunOptions,
        prompts: Sequence[Prompt | str] = (),
        inputs: InputOptions | None = None,
        *,
        prefix: str = "",
        engine: AnswerEngine | None = None,
    ) -> None:
        """Makes one, and loads the model.

        Args:
            options: the model, and how media are looked at and answered about.
            prompts: questions about each medium; `{column}` in one stands for the row's value of a column.
            inputs: which columns hold media, ids, questions and times. By default the medium is in the first of
                `path`, `file`, `file_name`, `video`, `image`, `url` and `media` that is there.
            prefix: begins the name of each column of the answers.
            engine: an engine that is loaded already and that nobody else uses meanwhile; it is not pickled.

        Raises:
            UsageError: nothing is asked, or an option makes no sense for a batch.
            ModelError: the model cannot be loaded.
        """
        self.asking = Asking(options, prompts, inputs or InputOptions(), prefix)
        self._engine = engine or _load(options)

    @property
    def engine(self) -> AnswerEngine:
        """The engine, loaded if it is not yet there."""
        if self._engine is None:
            self._engine = _load(self.asking.options)
        return self._engine

    def __getstate__(self) -> Asking:
        return self.asking

    def __setstate__(self, state: Asking) -> None:
        self.asking, self._engine = state, None


class Captioner(BatchModel):
    """A callable that takes a batch of columns and gives it back with the columns of the answers.

    One thread at a time may call it.
    """

    def __call__(self, batch: Any) -> Any:
        """The batch with the columns of the answers, in the order of its rows.

        A medium or a row that cannot be used gives a row whose `status` is `error`, with the reason in `error`. A row
        of the batch gives one row for each question; where spans are asked about, one for each span of its medium.

        Args:
            batch: a mapping from names to sequences of equal length, or a `pyarrow.Table`; the answer is of the same
                kind. A cell of the column of media is a path, a URL, the bytes of a file, a struct of `bytes` and
                `path`, a Pillow image or an array uint8 `[H, W, 3]`.

        Raises:
            UsageError: the batch lacks a column that is named, or has one with the name of a column of the answers;
                its own `id`, `file_name` and `media` stay, in place of those.
        """
        asked = self.asking.read(batch)
        return asked.joined(list(answer(asked.jobs, self.engine, self.asking.options)))


def _load(options: RunOptions) -> AnswerEngine:
    return load_engine(options.model, yes_no=options.generation.yes_no, collects=options.finds_scenes)
