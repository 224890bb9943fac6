"""Completion, asked for as a shell asks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = str(Path(sys.executable).parent / "llava-mini")


def completions(line: str, folder: Path) -> set[str]:
    """What bash would offer at the end of a line."""
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_LLAVA_MINI_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [COMMAND], env=os.environ | asked, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("llava-mini ca", {"caption"}),
        ("llava-mini ask a.mp4 --max-f", {"--max-frames", "--max-failures", "--max-file-size"}),
        ("llava-mini caption --fail-on a", {"any", "all"}),
        ("llava-mini caption x.jpg --dtype b", {"bfloat16"}),
        ("llava-mini caption ", set[str]()),  # file names are the shell's own business
    ],
)
def test_commands_flags_and_choices_are_offered(line: str, offered: set[str], tmp_path: Path) -> None:
    (tmp_path / "llava-mini.toml").write_text("a bad file does not keep anybody from completing")
    assert completions(line, tmp_path) == offered


def test_the_script_for_a_shell_is_shown() -> None:
    done = subprocess.run(
        ["bash", "-c", f"'{COMMAND}' --show-completion; true"], capture_output=True, text=True, timeout=60, check=False
    )
    assert "complete -o default -F _llava_mini_completion llava-mini" in done.stdout
