"""The benchmark of the published size, tried with a checkpoint of the same files and a few megabytes."""

import json
import sys
from pathlib import Path

import full_size
import pytest
import torch
from full_checkpoint import write_checkpoint

from llava_mini_cli.model.checkpoint import load_config, look_at_weights
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration
from llava_mini_cli.model.prompt_layouts import PromptBuilder
from llava_mini_cli.model.tensor_shapes import TOWER_MODULE
from llava_mini_cli.model.tokenizer_files import load_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("small"), "small")


def test_a_checkpoint_has_the_published_layout(checkpoint: Path) -> None:
    stored = look_at_weights(checkpoint, load_config(checkpoint))
    assert {one.dtype for name, one in stored.items() if name.startswith(TOWER_MODULE)} == {torch.float32}
    assert {one.dtype for name, one in stored.items() if not name.startswith(TOWER_MODULE)} == {torch.bfloat16}
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    shards = {path.name: path.stat().st_size for path in checkpoint.glob("*.safetensors")}
    assert set(index["weight_map"].values()) == set(shards)
    assert len(shards) > 2
    headers = sum(8 + int.from_bytes((checkpoint / name).read_bytes()[:8], "little") for name in shards)
    assert sum(shards.values()) == index["metadata"]["total_size"] + headers


def test_weights_follow_from_the_seed(checkpoint: Path, tmp_path: Path) -> None:
    name = "model-00001-of-00006.safetensors"
    same, other = (write_checkpoint(tmp_path / str(seed), "small", seed=seed) / name for seed in (1, 2))
    assert same.read_bytes() == (checkpoint / name).read_bytes() != other.read_bytes()


def test_a_tokenizer_has_all_tokens_of_the_model_and_llama_3s_special_ones(checkpoint: Path) -> None:
    config, tokenizer = load_config(checkpoint), load_tokenizer(checkpoint)
    assert len(tokenizer) == config.vocab_size
    first = config.vocab_size - 256
    assert tokenizer.convert_tokens_to_ids("<|begin_of_text|>") == config.bos_token_id == first
    assert tokenizer.convert_tokens_to_ids("<|eot_id|>") == first + 9
    prompts = PromptBuilder(tokenizer)
    assert prompts.family == "llama3"
    text = "What is shown in this picture?"
    assert prompts.answer_text(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_a_model_that_was_written_computes_finite_numbers(checkpoint: Path) -> None:
    model = LlavaMiniForConditionalGeneration.from_pretrained(checkpoint, dtype="bfloat16")
    logits = model(torch.tensor([[5, -200, 7, 8]]), torch.randn(1, 1, 3, 336, 336)).logits
    assert logits.isfinite().all()
    assert logits.std(-1).min() > 0.1


def test_the_whole_benchmark_runs_and_removes_what_it_wrote(
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    warm_command: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first run of the command is a process of the installed one, so that its memory is really watched."""
    programs = tmp_path_factory.mktemp("programs")
    installed, begun = Path(sys.executable).with_name("llava-mini"), programs / "begun"
    (programs / "llava-mini").write_text(
        f'#!/bin/sh\n[ -e {begun} ] && exec {warm_command}/llava-mini "$@"\ntouch {begun}\nexec {installed} "$@"\n'
    )
    (programs / "llava-mini").chmod(0o755)
    (programs / "python").symlink_to(warm_command / "python")
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    options = ["--size", "small", "--formats", "bfloat16", "--rounds", "1", "--at", "model", "--write", "figures.json"]
    monkeypatch.setattr(sys, "argv", ["full_size.py", *options])
    monkeypatch.chdir(tmp_path)
    full_size.main()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["figures.json"]
    assert list((tmp_path / "model").iterdir()) == []
    found = json.loads((tmp_path / "figures.json").read_text())["formats"]["bfloat16"]
    assert [*found["runs"]] == ["image, 1 question", "image, 16 questions", "video of 9 frames, 1 question"]
    assert all(run["seconds"] > 0.05 and "refused" not in run for run in found["runs"].values())
    assert found["runs"]["image, 1 question"]["peak_gib"] > 0.05
    assert len(found["phases"]) == 7
    assert all(one["products_seconds"] > 0 and one["gflops"] > 0 for one in found["phases"].values())
    assert set(found["rates"]["milliseconds"]) >= {"float32", "bfloat16"}
    assert "| step of 16 rows |" in capsys.readouterr().out


def test_a_refusal_is_a_result(
    checkpoint: Path, tmp_path: Path, warm_command: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(warm_command / "python"))  # the command is beside it
    media = full_size.make_media(tmp_path)
    found = full_size.measure(checkpoint / "nowhere", "bfloat16", media, 1, rates=False)
    assert found["runs"]["image, 1 question"]["exit_code"] == 1
    assert "no such directory" in full_size.refusal(found)


def test_a_process_that_fills_the_memory_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_size, "memory_bytes", lambda: 64 << 20)
    found = full_size.watched([sys.executable, "-c", "import time; held = bytearray(200 << 20); time.sleep(60)"])
    assert found["exit_code"] == -9
    assert found["refused"] == "took all of the machine's memory"
