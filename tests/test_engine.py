"""The engine gives each question the tokens that the plain path gives it alone, whatever is around it."""

from pathlib import Path

import pytest
import torch
from engine_doubles import ArrayFrames, noise_video
from engine_oracle import GREEDY, QUESTIONS, Oracle, by_prompt, limits, make_oracle, request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_checkpoints import write_tiny_checkpoint

from llava_mini_cli.config import GenerationOptions, ModelOptions
from llava_mini_cli.engine.llm.sampling import LOOP_TOKENS, YesNo
from llava_mini_cli.engine.load import load_engine, make_engine
from llava_mini_cli.engine.pack import PromptGroup
from llava_mini_cli.engine.request import Answer, Failure, Request, Window
from llava_mini_cli.engine.window_sum import WindowSum
from llava_mini_cli.errors import MediaError
from llava_mini_cli.model.prompt_layouts import IMAGE_TOKEN_ID


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(tmp_path_factory.mktemp("tiny"))


media = st.tuples(
    st.sampled_from((1, 1, 1, 2, 5, 17)),
    st.integers(0, 2),
    st.lists(st.sampled_from(QUESTIONS), min_size=1, max_size=5),
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(media, min_size=1, max_size=6),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 6),
    st.sampled_from((1, 1 << 30)),
    st.integers(1, 9),
    st.integers(0, 3),
)
def test_an_answer_does_not_depend_on_its_neighbours(
    oracle: Oracle,
    wanted: list[tuple[int, int, list[str]]],
    chunk: int,
    generations: int,
    waiting: int,
    cache_bytes: int,
    source_size: int,
    not_ready: int,
) -> None:
    engine = oracle.engine(limits(chunk, generations, waiting, cache_bytes))
    requests: list[Request] = []
    for number, (frames, seed, prompts) in enumerate(wanted):
        source = ArrayFrames(oracle.video(frames, seed), source_size, not_ready=not_ready)
        kind = "image" if frames == 1 else "video"
        requests.append(Request(str(number), kind, source, tuple(prompts), GREEDY))
    outcomes = by_prompt(list(engine.run(requests)))
    for number, (frames, seed, prompts) in enumerate(wanted):
        for index, question in enumerate(prompts):
            answer = outcomes.pop((str(number), 0, index))
            assert isinstance(answer, Answer)
            assert list(answer.token_ids) == oracle.ids(frames, seed, question)
            assert answer.frame_count == answer.vision_tokens == frames
    assert not outcomes
    assert all(one.frames.closed for one in requests)  # pyright: ignore[reportAttributeAccessIssue]
    assert engine.is_idle


def test_sixteen_questions_about_300_frames(oracle: Oracle) -> None:
    questions = [f"{question} ({number})" for number in range(4) for question in QUESTIONS[:4]]
    outcomes = by_prompt(list(oracle.engine(limits(32)).run([request("v", oracle.video(300, 9), questions)])))
    for index in (0, 3, 15):
        answer = outcomes["v", 0, index]
        assert isinstance(answer, Answer)
        assert list(answer.token_ids) == oracle.answer(oracle.video(300, 9), questions[index])


@pytest.mark.parametrize("beside_the_tail", [-8, 0, 1, 64])
def test_a_prefix_longer_than_a_stretch_is_prefilled_alike(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch, beside_the_tail: int
) -> None:
    ids = oracle.engine(limits()).prompts.question_ids(QUESTIONS[0])
    tail = len(ids) - ids.index(IMAGE_TOKEN_ID) - 1
    monkeypatch.setattr("llava_mini_cli.engine.llm.generate.PREFILL_POSITIONS", tail + beside_the_tail)
    (answer,) = oracle.engine(limits()).run([request("v", oracle.video(17, 2), QUESTIONS[:1])])
    assert isinstance(answer, Answer)
    assert list(answer.token_ids) == oracle.ids(17, 2, QUESTIONS[0])


def test_a_short_medium_and_its_questions_go_through_the_weights_once(oracle: Oracle) -> None:
    engine = oracle.engine(limits())
    rows: list[int] = []
    layer = engine.model.get_submodule("model.layers.0.mlp.down_proj")
    hook = layer.register_forward_pre_hook(lambda _, given: rows.append(given[0].shape[-2]))
    try:
        list(engine.run([request("v", oracle.video(3, 2), QUESTIONS[:2])]))
    finally:
        hook.remove()
    prompts = [engine.prompts.question_ids(question) for question in QUESTIONS[:2]]
    before = prompts[0].index(IMAGE_TOKEN_ID)
    assert rows[0] == before + 3 + sum(len(ids) - before - 1 for ids in prompts)
    assert max(rows[1:]) == 2


def test_a_kept_frame_keeps_nothing_else_alive(oracle: Oracle) -> None:
    window = WindowSum(0, Window(), (PromptGroup(0, (1,), (0,)),))
    for _ in range(100):
        window.add(torch.ones(2, 90, 8)[:, :1], torch.ones(2, 5, 8))
    assert window.tokens.shape == (200, 8)
    assert window.tokens.untyped_storage().nbytes() <= 4 * window.tokens.nbytes
    assert window.total is not None
    assert window.total.eq(200).all()


def test_a_window_is_answered_like_a_video_of_its_frames(oracle: Oracle) -> None:
    pixels = oracle.video(17, 1)
    windows = (Window(0, 5), Window(3, 9.5), Window(), Window(12, 14), Window(30, 40))
    outcomes = by_prompt(list(oracle.engine(limits(4)).run([request("v", pixels, QUESTIONS[:2], windows=windows)])))
    assert len(outcomes) == 10
    for number, part in enumerate((pixels[:5], pixels[3:10], pixels, pixels[12:14])):
        for index in range(2):
            answer = outcomes["v", number, index]
            assert isinstance(answer, Answer)
            assert list(answer.token_ids) == oracle.answer(part, QUESTIONS[index])
    empty = outcomes["v", 4, 0]
    assert isinstance(empty, Failure)
    assert empty.error_type == "empty"


def test_a_failing_medium_fails_alone(oracle: Oracle) -> None:
    broken = ArrayFrames(oracle.video(5, 0), 2, error=MediaError("corrupt", "damaged at 5.0 s"))
    good = request("good", oracle.video(2, 1), QUESTIONS[:1])
    outcomes = by_prompt(
        list(oracle.engine(limits()).run([Request("bad", "video", broken, QUESTIONS[:2], GREEDY), good]))
    )
    for index in range(2):
        failure = outcomes["bad", 0, index]
        assert failure == Failure("bad", index, "decode", "corrupt", "damaged at 5.0 s")
    assert isinstance(outcomes["good", 0, 0], Answer)
    assert broken.closed


@pytest.mark.parametrize("chunk", [2, 20])
def test_windows_that_ended_before_a_medium_broke_are_answered(oracle: Oracle, chunk: int) -> None:
    pixels = oracle.video(7, 0)
    broken = ArrayFrames(pixels, 2, error=MediaError("corrupt", "damaged at 7.0 s"))
    asked = Request("v", "video", broken, QUESTIONS[:1], GREEDY, windows=(Window(0, 4), Window(4, 8)))
    outcomes = by_prompt(list(oracle.engine(limits(chunk)).run([asked])))
    answer = outcomes["v", 0, 0]
    assert isinstance(answer, Answer)
    assert list(answer.token_ids) == oracle.answer(pixels[:4], QUESTIONS[0])
    assert isinstance(outcomes["v", 1, 0], Failure)


def test_sampling_depends_on_the_seed_alone(oracle: Oracle) -> None:
    def run(seed: int, others: int) -> tuple[int, ...]:
        options = GenerationOptions(max_new_tokens=12, temperature=1.5, top_p=0.95, seed=seed)
        crowd = [
            Request(str(number), "image", ArrayFrames(oracle.video(1, number)), QUESTIONS[:2], options)
            for number in range(others + 1)
        ]
        return by_prompt(list(oracle.engine(limits(3)).run(crowd)))["0", 0, 0].token_ids  # pyright: ignore

    assert run(1, 0) == run(1, 4)
    assert run(1, 0) != run(2, 0)


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_a_repetition_penalty_is_that_of_generate(oracle: Oracle, penalty: float) -> None:
    pixels, question = oracle.video(5, 0), QUESTIONS[0]
    batch = oracle.processor(videos=pixels, text=question)
    with pytest.warns(UserWarning, match="only to newly generated tokens"):
        expected = oracle.model.generate(**batch, max_new_tokens=24, repetition_penalty=penalty)[0].tolist()
    options = GenerationOptions(max_new_tokens=24, repetition_penalty=penalty)
    crowd = [Request("v", "video", ArrayFrames(pixels), (question, QUESTIONS[1]), options)]
    answer = by_prompt(list(oracle.engine(limits(3)).run(crowd)))["v", 0, 0]
    assert isinstance(answer, Answer)
    ends = oracle.model.generation_config.eos_token_id
    assert list(answer.token_ids) == [token for token in expected if token not in ends]
    plain = oracle.model.generate(**batch, max_new_tokens=24)[0].tolist()
    assert plain != expected


def test_yes_against_no_is_the_plain_paths_and_does_not_change_the_answer(oracle: Oracle) -> None:
    asked = GenerationOptions(max_new_tokens=4, yes_no=True)
    pixels = oracle.video(5, 0)
    source = Request("v", "video", ArrayFrames(pixels), QUESTIONS[:3], asked)
    found = by_prompt(list(oracle.engine(limits(3)).run([source, request("i", oracle.video(1, 1), QUESTIONS[:1])])))
    ids = YesNo.of(oracle.processor.prompts().tokenizer)
    for number, question in enumerate(QUESTIONS[:3]):
        answer = found["v", 0, number]
        assert isinstance(answer, Answer)
        with torch.inference_mode():
            logits = oracle.model(**oracle.processor(videos=pixels, text=question)).logits[0, -1]
        chances = logits.double().softmax(-1)
        yes, no = (float(chances[list(tokens)].sum()) for tokens in (ids.yes, ids.no))
        assert answer.p_yes == pytest.approx(yes / (yes + no), abs=1e-6)
        assert list(answer.token_ids) == oracle.ids(5, 0, question)[:4]
    image = found["i", 0, 0]
    assert isinstance(image, Answer)
    assert image.p_yes is None


def test_a_tiny_temperature_takes_the_likeliest_token(oracle: Oracle) -> None:
    options = GenerationOptions(max_new_tokens=8, temperature=1e-44)
    (answer,) = oracle.engine(limits()).run(
        [Request("v", "video", ArrayFrames(oracle.video(2, 0)), ("Red?",), options)]
    )
    assert isinstance(answer, Answer)
    assert list(answer.token_ids) == oracle.ids(2, 0, "Red?")


def test_scores_that_are_no_numbers_are_a_failure(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle.model.lm_head, "forward", lambda hidden: torch.full((len(hidden), 16), float("nan")))
    (failure,) = oracle.engine(limits()).run([request("v", oracle.video(2, 0), ("Red?",))])
    assert isinstance(failure, Failure)
    assert "no finite scores" in failure.message


def test_a_loop_ends_as_repetition_and_the_rest_as_length(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    # A head of zeros says token 0 for ever.
    weight = oracle.model.lm_head.weight
    monkeypatch.setattr(weight, "data", torch.zeros_like(weight))

    def ask(new_tokens: int) -> Answer:
        options = GenerationOptions(max_new_tokens=new_tokens)
        source = ArrayFrames(oracle.video(1, 0))
        (answer,) = oracle.engine(limits()).run([Request("v", "image", source, QUESTIONS[:1], options)])
        assert isinstance(answer, Answer)
        return answer

    looping, short = ask(400), ask(LOOP_TOKENS - 1)
    assert (looping.finish_reason, looping.completion_tokens) == ("repetition", LOOP_TOKENS)
    assert (short.finish_reason, short.completion_tokens) == ("length", LOOP_TOKENS - 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_compiled_layers_give_the_same_tokens(oracle: Oracle) -> None:
    options = ModelOptions(model="tiny", compile=True)
    engine = make_engine(oracle.model, oracle.processor, options)
    outcomes = by_prompt(list(engine.run([request("v", oracle.video(5, 1), QUESTIONS[:3])])))
    for index in range(3):
        answer = outcomes["v", 0, index]
        assert isinstance(answer, Answer)
        assert list(answer.token_ids) == oracle.ids(5, 1, QUESTIONS[index])


def test_quantised_weights_answer(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path)
    engine = load_engine(ModelOptions(str(checkpoint), device="cpu", quantize="int8"))
    assert type(engine.model.model.layers[0].self_attn.q_proj).__name__ == "Int8Linear"
    (answer,) = engine.run([request("v", noise_video(3, 0), QUESTIONS[:1])])
    assert isinstance(answer, Answer)


def test_close_ends_every_source(oracle: Oracle) -> None:
    engine = oracle.engine(limits(1))
    source = ArrayFrames(oracle.video(5, 0))
    engine.add(Request("v", "video", source, QUESTIONS[:1], GREEDY))
    engine.step()
    engine.close()
    assert source.closed
    assert engine.is_idle
