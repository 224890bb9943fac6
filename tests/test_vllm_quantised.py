"""vLLM itself with quantised weights, on the CPU: checkpoints that lie so, and `--quantize`. Run by `make vllm`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from compressed_checkpoints import compress, quantise_elsewhere
from engine_oracle import by_prompt
from test_vllm import WORDS, medium
from tiny_checkpoints import write_tiny_checkpoint

import llava_mini_cli
from llava_mini_cli.config import GenerationOptions, ModelOptions
from llava_mini_cli.engine.load import load_engine
from llava_mini_cli.engine.request import Answer
from llava_mini_cli.errors import ModelError
from llava_mini_cli.needs import is_installed

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not is_installed("vllm"), reason="vLLM is not installed: make vllm"),
]
DEMO = Path(llava_mini_cli.__file__).parent / "demo" / "model"
ASKED = GenerationOptions(max_new_tokens=24, yes_no=True)


def answers(options: ModelOptions) -> list[Answer]:
    """What is said of a picture and two videos."""
    engine = load_engine(options)
    try:
        requests = [medium(engine, str(frames), frames, WORDS, ASKED) for frames in (1, 9, 34)]
        found = by_prompt(list(engine.run(requests)))
    finally:
        if options.llm == "vllm":
            engine._llm._link.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert all(isinstance(one, Answer) for one in found.values())
    return [found[key] for key in sorted(found)]  # pyright: ignore[reportReturnType]


def on_both(options: ModelOptions) -> tuple[list[Answer], list[Answer]]:
    return answers(replace(options, quantize=None)), answers(replace(options, llm="vllm"))


def alike(own: Sequence[Answer], other: Sequence[Answer]) -> tuple[int, float]:
    """How many answers have the same tokens, and by how much the probabilities of yes differ at most."""
    same = sum(one.token_ids == two.token_ids for one, two in zip(own, other, strict=True))
    pairs = [(one.p_yes, two.p_yes) for one, two in zip(own, other, strict=True)]
    return same, max(abs(one - two) for one, two in pairs)  # pyright: ignore[reportOptionalOperand]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of widths that vLLM's kernels take."""
    changes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4}
    return write_tiny_checkpoint(tmp_path_factory.mktemp("plain"), **changes)


@pytest.mark.parametrize("scheme", ["W4A16", "W4A16_ASYM"])
def test_weights_of_four_bits(plain: Path, tmp_path: Path, scheme: str) -> None:
    """Pre-fusion's among them. Tokens are those of the weights that the bits mean, and not of the plain model."""
    compress(plain, tmp_path, scheme)
    options = ModelOptions(str(tmp_path), dtype="float16", device="cpu")
    own, other = on_both(options)
    same, far = alike(own, other)
    assert (same, far < 1e-2) == (15, True)
    assert alike(answers(replace(options, model=str(plain))), own)[0] < 8


@pytest.mark.parametrize("scheme", ["W8A8", "FP8_DYNAMIC"])
def test_weights_and_activations_of_eight_bits(tmp_path: Path, scheme: str) -> None:
    """Our own reads the same weights and keeps activations as they are; `auto` is bfloat16."""
    compress(DEMO, tmp_path, scheme)
    options = ModelOptions(str(tmp_path), device="cpu")
    own, other = answers(replace(options, dtype="float32")), answers(replace(options, llm="vllm"))
    same, far = alike(own, other)
    assert same >= 12
    assert 0 < far < 0.05


def test_plain_weights_that_vllm_quantises(plain: Path) -> None:
    """To fp8; our half keeps the number format of the computation."""
    own, other = on_both(ModelOptions("demo", dtype="bfloat16", device="cpu", quantize="fp8"))
    same, far = alike(own, other)
    assert same >= 12
    assert 0 < far < 0.05


def test_what_vllm_has_no_kernel_for_is_one_line(plain: Path, tmp_path: Path) -> None:
    compress(plain, tmp_path, "W8A16")
    with pytest.raises(ModelError) as caught:
        answers(ModelOptions(str(tmp_path), device="cpu", llm="vllm"))
    assert str(caught.value).startswith(f"model {tmp_path}: vLLM cannot load it (")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_other_methods_of_quantising_the_language_model(plain: Path, tmp_path: Path, method: str) -> None:
    """Tokens are those of the plain model that the bits mean, of which our own rounds the weights to float16."""
    folder, meant = tmp_path / "q", tmp_path / "meant"
    quantise_elsewhere(plain, folder, meant, method)
    options = ModelOptions(str(folder), dtype="float16", device="cpu", llm="vllm")
    same, far = alike(answers(replace(options, model=str(meant), llm="own")), answers(options))
    assert same >= 13
    assert far < 1e-2
