"""JSON of strangers that is made to take long, or to fill a line of an error."""

import resource

import pytest

from llava_mini_cli.plain_files import parse_json


def test_a_key_that_stands_there_twice_is_found_at_once_among_many() -> None:
    keys = [f'"k{number}":0' for number in range(200_000)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    with pytest.raises(ValueError, match=r"^'k199999' stands there twice$"):
        parse_json(("{" + ",".join([*keys, keys[-1]]) + "}").encode())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 20  # half an hour if each key is looked for


def test_a_long_key_that_stands_there_twice_is_told_by_its_beginning() -> None:
    key = "x" * 100_000
    with pytest.raises(ValueError, match=f"^'{'x' * 100}' stands there twice$"):
        parse_json(f'{{"{key}": 0, "{key}": 1}}'.encode())
