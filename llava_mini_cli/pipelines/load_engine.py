"""From model options to an engine, with the quick refusals first: torch is imported only once the model is found."""

from llava_mini_cli.config import ModelOptions
from llava_mini_cli.hub import find_model
from llava_mini_cli.pipelines.model_needs import look_at_needs
from llava_mini_cli.pipelines.run_parts import CollectingEngine


def load_engine(
    options: ModelOptions, *, collects: bool = False, compares: bool = False, yes_no: bool = False
) -> CollectingEngine:
    """The engine of a model. Raises `PackageMissing`, `ModelNotFound`, `CheckpointError` or `UsageError`.

    Args:
        collects: it will hand out what it makes of frames.
        compares: frames will be compared by their CLIP embeddings.
        yes_no: it will be asked how likely yes is.
    """
    look_at_needs(options)
    find_model(options.model, options.revision)
    from llava_mini_cli.engine import load

    return load.load_engine(options, collects=collects, compares=compares, yes_no=yes_no)
