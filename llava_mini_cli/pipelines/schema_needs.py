"""What a schema needs of this machine, looked at before a model is loaded or a medium opened."""

from llava_mini_cli.engine.grammar_check import refusals
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.answer_schema import AnswerSchema


def check_grammars(schema: AnswerSchema) -> None:
    """Makes sure that answers can be held to a schema. One of labels alone needs nothing.

    Raises:
        UsageError: a package is not installed, or what it does not support is in the schema; the text has its words.
    """
    held = schema.grammars
    for (name, _), words in zip(held, refusals(grammar for _, grammar in held), strict=True):
        if words is not None:
            where = "" if name is None else f"the field '{name}': "
            raise UsageError(f"--schema: {where}answers cannot be held to it: {words}")
