"""`llava-mini train`: the demo model from nothing, or a real model on data in LLaVA's own format."""

from importlib import import_module

from llava_mini_cli.commands.flags.talk_flags import TalkFlags
from llava_mini_cli.commands.flags.train_flags import TrainFlags
from llava_mini_cli.commands.stderr import hush_libraries, say
from llava_mini_cli.errors import OutputError
from llava_mini_cli.needs import MODEL_PACKAGES, TRAIN, check_packages


def train(flags: TrainFlags, talk: TalkFlags) -> int:
    """Train a model. The same command again goes on where it stopped.

    With --preset demo the data are rendered, and the demo model is trained
    from nothing. Otherwise the options --model and --data are needed; the
    defaults of the others are the paper's.
    """
    hush_libraries(verbose=talk.verbose)
    TRAIN.check("train")
    check_packages(MODEL_PACKAGES)
    if flags.preset is None:
        for package in ("accelerate", "peft") if flags.lora_rank else ("accelerate",):
            import_module(package)  # a broken one is told before a model or data are looked at
    from llava_mini_cli.formats.disk import check_folder
    from llava_mini_cli.safe_files import NotRegularError, check_tree

    check_folder(flags.output)
    try:
        check_tree(flags.output)
    except NotRegularError as error:
        raise OutputError(f"cannot write into '{flags.output}': '{error.filename}': {error.strerror}") from error
    tell = _quiet if talk.quiet else say
    if flags.preset is not None:
        from llava_mini_cli.train.demo_preset.stages import train_demo_model

        target = train_demo_model(flags.output, tell)
    else:
        from llava_mini_cli.train.finetune import finetune

        target = finetune(flags.options(), tell)
    tell(f"the model is in {target}")
    return 0


def _quiet(_: str) -> None:
    return
