"""Prepared weights as whoever starts a run sees them: the option, the folder, what is said, and doctor's lines."""

import os
import re
from pathlib import Path

import pytest
from configured_cli import llava_mini
from prepared_doubles import load, wanted

from llava_mini_cli.commands.reporter import Reporter
from llava_mini_cli.config import ModelOptions
from llava_mini_cli.engine import prepared, prepared_wanted
from llava_mini_cli.engine.estimate import Outlook
from llava_mini_cli.engine.int8_kernels import int8_available
from llava_mini_cli.engine.load import load_engine
from llava_mini_cli.engine.packed_linear import Int8Linear
from llava_mini_cli.engine.prepared import PreparedSupply
from llava_mini_cli.engine.prepared_folder import folder, kept_files
from llava_mini_cli.engine.prepared_wanted import about_weights
from llava_mini_cli.errors import UsageError
from llava_mini_cli.pipelines.tally import Tally

needs_int8 = pytest.mark.skipif(int8_available() is not None, reason=str(int8_available()))
DEMO = ModelOptions("demo", device="cpu", quantize="int8")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@needs_int8
def test_a_model_whose_layers_are_packed_at_once_leaves_no_file(cache: Path) -> None:
    load_engine(DEMO)
    assert not folder().exists()
    assert folder() == cache / "llava-mini" / "prepared"


@needs_int8
def test_the_second_load_of_a_model_packs_no_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "WORTH_S", 0.0)
    first = load_engine(DEMO)
    assert [file.about["model"] for file in kept_files(folder())] == ["demo"]

    def fail(*_: object) -> Int8Linear:
        raise AssertionError("a layer was packed again")

    monkeypatch.setattr(Int8Linear, "from_weight", fail)
    second = load_engine(DEMO)
    layers = [module for module in second.model.modules() if isinstance(module, Int8Linear)]
    assert len(layers) == sum(isinstance(module, Int8Linear) for module in first.model.modules()) > 0
    assert layers[0].parts()["packed"].is_mkldnn


@needs_int8
def test_a_change_in_the_middle_of_a_weight_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"x")
    before = about_weights([path], "digest", "int8", "onednn")
    assert about_weights([path], "digest", "int8", "onednn_by_4") == before
    assert about_weights([path], "digest", "int8", "unpacked") != before
    os.utime(path, (1, 1))
    assert about_weights([path], "digest", "int8", "onednn") != before


def test_the_bound_is_an_option() -> None:
    result = llava_mini("ask", "a.png", "What?", "-m", "demo", "--prepared-size", "much")
    assert result.exit_code == 2
    assert "'much' is not a size" in result.stderr
    with pytest.raises(UsageError, match="--prepared-size must not be negative"):
        ModelOptions("demo", prepared_bytes=-1)


def test_doctor_shows_what_lies_there_and_how_to_remove_it(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Outlook("cpu", None, "float32", ())
    monkeypatch.setattr("llava_mini_cli.pipelines.model_outlook.measured_outlook", lambda model: measured)
    assert "prepared weights" not in llava_mini("doctor", "-m", "demo").stdout
    for name in ("tiny", "other"):
        with PreparedSupply(wanted(model=name, about={"digest": name, "format": "int8"})) as supply:
            load(supply)
    os.utime(folder() / f"{wanted(about={'digest': 'tiny', 'format': 'int8'}).key}.weights", (86400, 86400))
    lines = llava_mini("doctor", "-m", "demo").stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("prepared weights"))
    assert lines[at].endswith(f"  0.0 GiB, to be removed at any time by rm -r {folder()}")
    assert re.search(r"other in int8, 0\.0 GiB, last used 20\d\d-", lines[at + 1])
    assert re.search(r"tiny in int8, 0\.0 GiB, last used 1970-01-0[12] ", lines[at + 2])


@pytest.mark.parametrize(("quiet", "said"), [(False, "llava-mini: waiting\n"), (True, "")])
def test_a_note_of_the_engine_is_a_line_on_stderr(quiet: bool, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(Tally(), 2, quiet=quiet, verbose=False):
        prepared_wanted.notes.warning("waiting")
    assert capsys.readouterr().err == said
    assert prepared_wanted.notes.handlers == []
