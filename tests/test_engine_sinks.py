"""What is handed on of each frame is what the plain path computes, and known features answer as their pixels do."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch
from engine_doubles import ArrayFrames
from engine_oracle import GREEDY, QUESTIONS, Oracle, by_prompt, limits, make_oracle

from llava_mini_cli.engine.encode import Encoded
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.frame_encoder import collect
from llava_mini_cli.engine.request import Answer, EncodedFrames, Failure, FeatureChunk, FrameShapes, Request
from llava_mini_cli.errors import ItemError, MediaError
from llava_mini_cli.media.clip import FrameChunk

SHARED = 8


class ListSink:
    """Keeps what it is given."""

    def __init__(self, features: Literal["float16", "float32"] | None = None) -> None:
        self.features = features
        self.frames: list[EncodedFrames] = []
        self.end_count = 0
        self.failures: list[tuple[str, str, str]] = []

    def add(self, frames: EncodedFrames) -> None:
        assert not self.end_count
        self.frames.append(frames)

    def end(self) -> None:
        self.end_count += 1

    def fail(self, stage: str, error_type: str, message: str) -> None:
        self.failures.append((stage, error_type, message))


class StoredFrames(ArrayFrames):
    """Features in place of pixels, as an archive has them."""

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self.pixels), self.size):
            part = self.pixels[start : start + self.size]
            yield FeatureChunk(part, np.arange(start, start + len(part), dtype=np.float64))


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def projection() -> torch.Tensor:
    return torch.randn(SHARED, 64, generator=torch.Generator().manual_seed(1))


def engine_of(oracle: Oracle, projection: torch.Tensor | None, chunk: int = 4) -> Engine:
    return Engine(
        oracle.model, oracle.processor, oracle.processor.prompts(), limits(chunk), image_projection=projection
    )


@pytest.mark.parametrize("stored", ["float16", "float32", None])
def test_a_sink_is_given_what_the_plain_path_computes(
    oracle: Oracle, projection: torch.Tensor, stored: Literal["float16", "float32"] | None
) -> None:
    sink, pixels = ListSink(stored), oracle.video(7, 3)
    engine = engine_of(oracle, projection)
    source = ArrayFrames(pixels, 3)
    assert list(engine.run([Request("v", "video", source, (), GREEDY, sink=sink)])) == []
    assert (sink.end_count, sink.failures, source.closed) == (1, [], True)
    assert [len(part.times) for part in sink.frames] == [3, 1, 2, 1]
    assert np.concatenate([part.times for part in sink.frames]).tolist() == [*range(7)]
    batch = oracle.processor(videos=pixels, text="x")["pixel_values"]
    with torch.inference_mode():
        clip = oracle.model.model.vision_tower.vision_tower(batch[:, 0], output_hidden_states=True)
        vision = oracle.model.model.encode_vision(batch).sequence()
        ids = torch.zeros(7, 1, dtype=torch.int64)
        tokens, _ = oracle.model.model.fuse(batch, oracle.model.model.embed_text(ids), ids)
        wanted = torch.nn.functional.normalize(clip.pooler_output @ projection.T, dim=-1)
    assert tokens.shape == (7, 1, vision.shape[-1])
    found = np.concatenate([part.tokens for part in sink.frames])
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, tokens.numpy(), rtol=2e-3, atol=2e-3)
    embeddings = [part.embeddings for part in sink.frames if part.embeddings is not None]
    np.testing.assert_allclose(np.concatenate(embeddings), wanted.numpy(), rtol=1e-4, atol=1e-5)
    features = [part.features for part in sink.frames if part.features is not None]
    if stored is None:
        assert features == []
    else:
        assert {part.dtype.name for part in features} == {stored}
        hidden = clip.hidden_states[-2][:, None, 1:].numpy()
        np.testing.assert_allclose(np.concatenate(features), hidden, rtol=2e-3, atol=2e-3)
        assert features[0].shape[1:] == engine.frame_shapes.features


def test_known_features_answer_as_their_pixels_do(oracle: Oracle, projection: torch.Tensor) -> None:
    sink, pixels = ListSink("float32"), oracle.video(5, 0)
    engine = engine_of(oracle, projection)
    asked = QUESTIONS[:2]
    first = by_prompt(list(engine.run([Request("v", "video", ArrayFrames(pixels), asked, GREEDY, sink=sink)])))
    features = np.concatenate([part.features for part in sink.frames if part.features is not None])
    again = ListSink("float32")
    requests = [
        Request("v", "video", StoredFrames(features, 2), asked, GREEDY, sink=again),
        Request("i", "image", ArrayFrames(oracle.video(1, 1)), asked[:1], GREEDY),
    ]
    second = by_prompt(list(engine.run(requests)))
    for index in range(2):
        one, two = first["v", 0, index], second["v", 0, index]
        assert isinstance(one, Answer)
        assert isinstance(two, Answer)
        assert one.token_ids == two.token_ids == tuple(oracle.ids(5, 0, asked[index]))
    image = second["i", 0, 0]
    assert isinstance(image, Answer)
    assert list(image.token_ids) == oracle.ids(1, 1, asked[0])
    assert all(part.embeddings is None for part in again.frames)
    np.testing.assert_array_equal(np.concatenate([part.tokens for part in again.frames])[:, 0, 0].shape, (5,))
    assert engine.frames_encoded == 11


def test_a_medium_that_breaks_fails_its_sink(oracle: Oracle) -> None:
    sink = ListSink()
    source = ArrayFrames(oracle.video(3, 0), 2, error=MediaError("corrupt", "damaged"))
    (failure,) = engine_of(oracle, None).run([Request("v", "video", source, ("Red?",), GREEDY, sink=sink)])
    assert failure == Failure("v", 0, "decode", "corrupt", "damaged")
    assert (sink.failures, sink.end_count) == ([("decode", "corrupt", "damaged")], 0)
    assert sink.frames[0].embeddings is None


def test_a_prompt_that_cannot_be_asked_leaves_the_sink_its_frames(oracle: Oracle) -> None:
    sink = ListSink()
    (failure,) = engine_of(oracle, None).run(
        [Request("v", "video", ArrayFrames(oracle.video(3, 0)), ("",), GREEDY, sink=sink)]
    )
    assert isinstance(failure, Failure)
    assert (failure.error_type, sink.end_count, len(sink.frames)) == ("empty_prompt", 1, 1)


def test_values_beyond_16_bits_are_refused() -> None:
    frames = FrameChunk(np.zeros((1, 2, 2, 3), np.uint8), np.zeros(1))
    token = torch.full((1, 1, 4), 65504.0)
    features = torch.full((1, 1, 2, 3), 1e5)

    def encoded(token: torch.Tensor) -> Encoded:
        return Encoded(token, torch.zeros(1, 2, 4), features)

    assert collect(None, frames, encoded(token)).tokens.max() == 65504
    with pytest.raises(ItemError, match="vision token"):
        collect(None, frames, encoded(-2 * token))
    with pytest.raises(ItemError, match="store float32"):
        collect("float16", frames, encoded(token))
    whole = collect("float32", frames, encoded(token))
    assert whole.features is not None
    assert whole.features.max() == np.float32(1e5)


def test_what_does_not_fit_16_bits_fails_the_medium(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_mini_cli.engine.frame_encoder.FLOAT16_MAX", 0.0)
    sink = ListSink()
    asked = Request("v", "video", ArrayFrames(oracle.video(3, 0)), ("Red?",), GREEDY, sink=sink)
    (failure,) = engine_of(oracle, None).run([asked])
    assert isinstance(failure, Failure)
    assert (failure.stage, failure.error_type) == ("generate", "out_of_range")
    assert [one[:2] for one in sink.failures] == [("generate", "out_of_range")]
    assert sink.end_count == 0


def test_what_an_engine_says_of_itself(oracle: Oracle, projection: torch.Tensor) -> None:
    engine = engine_of(oracle, projection)
    assert engine.frame_shapes == FrameShapes((1, 32), SHARED, (1, 16, 64))
    assert engine_of(oracle, None).frame_shapes.embedding is None
    assert (engine.dtype, engine.frame_size, engine.frames_encoded) == ("float32", 56, 0)
