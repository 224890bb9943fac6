"""The media and tables that the user named -> a lazy stream of jobs, in the order given, duplicates and all.

    files, folders, globs, lists -> one job each        tables, shards -> one job for the rows about a medium

Arguments are checked at once and read only when they are reached. Opens no medium and knows nothing of decoding.
"""

from llava_mini_cli.formats.inputs.folders import IsMedia
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.inputs.passed_over import PassedOver
from llava_mini_cli.formats.inputs.read import Inputs, open_inputs

__all__ = ["InputOptions", "Inputs", "IsMedia", "PassedOver", "open_inputs"]
