"""What is known of a model on this machine before it is loaded: measured for `doctor`, or kept for a dry run.

Imports torch only where it measures. Prints nothing.
"""

import subprocess
import sys
import time

from llava_mini_cli.config import ModelOptions
from llava_mini_cli.engine.estimate import Estimates, FormatOutlook, Outlook, kept_estimates
from llava_mini_cli.errors import ModelNotFound
from llava_mini_cli.hub import find_model

__all__ = ["Estimates", "FormatOutlook", "Outlook", "estimates_of", "measured_outlook"]


def measured_outlook(model: str) -> Outlook:
    """Each format of a model that is on this disk. Raises `ModelError` where it is not, or is damaged."""
    from llava_mini_cli.engine.outlook import outlook

    return outlook(model, starting_seconds())


def starting_seconds() -> float:
    """Seconds that a process takes until it can load a model; this one has imported most of what that takes."""
    began = time.perf_counter()
    code = "import llava_mini_cli.commands.main, llava_mini_cli.engine.load"
    # -P: nothing is imported from the working directory, which may be somebody else's.
    subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True)
    return time.perf_counter() - began


def estimates_of(options: ModelOptions) -> Estimates | None:
    """What was measured of a model on this machine some time ago; None: nothing, or the model is not on this disk."""
    try:
        return kept_estimates(find_model(options.model, options.revision, local_files_only=True))
    except ModelNotFound:
        return None
