"""From model options to an engine, with the quick refusals first: torch is imported only once the model is found."""

from llava_mini_cli.config import ModelOptions
from llava_mini_cli.hub import find_model
from llava_mini_cli.pipelines.build_archive import IndexEngine
from llava_mini_cli.pipelines.run_parts import AnswerEngine


def load_engine(options: ModelOptions) -> AnswerEngine:
    """The engine of a model. Raises `ModelNotFound`, `CheckpointError` or `UsageError`."""
    find_model(options.model, options.revision)
    from llava_mini_cli.engine import load

    return load.load_engine(options)


def load_collecting_engine(options: ModelOptions) -> IndexEngine:
    """The same engine, ready to hand out what it makes of frames."""
    find_model(options.model, options.revision)
    from llava_mini_cli.engine import load

    return load.load_engine(options, collects=True)
