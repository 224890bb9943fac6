"""`llava-mini doctor`: what a bug report needs, and what is missing."""

from llava_mini_cli.commands.flags.model_flags import DEFAULT_MODEL, Model
from llava_mini_cli.commands.flags.talk_flags import ConfigFile, Verbose
from llava_mini_cli.commands.stderr import hush_libraries, say_error, terminal_line

EXIT_UNFIT = 1


def doctor(model: Model = DEFAULT_MODEL, verbose: Verbose = False, config: ConfigFile = None) -> int:
    """Show the versions, the device, the decoders and whether the model is here.

    The exit code is 1 if something is missing that llava-mini ask needs.
    """
    hush_libraries(verbose=verbose)
    from llava_mini_cli.pipelines.health import examine

    facts = examine(model)
    width = max(len(fact.name) for fact in facts)
    for fact in facts:
        print(f"{fact.name:<{width}}  {terminal_line(fact.value)}")
    problems = [fact.problem for fact in facts if fact.problem]
    for problem in problems:
        say_error(problem)
    return EXIT_UNFIT if problems else 0
