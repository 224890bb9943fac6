"""Scenes, videos and questions: true by construction, the same every time, and split as they say."""

import json
from collections import Counter

import numpy as np
import pytest

from llava_mini_cli.demo.image_questions import IMAGE_KINDS, caption, image_question, references, relation_of
from llava_mini_cli.demo.render import Look, random_look, render
from llava_mini_cli.demo.scenes import (
    CANVAS,
    HELD_OUT_LAYOUTS,
    RADIUS,
    SPLITS,
    TRAIN_LAYOUTS,
    Scene,
    Split,
    Thing,
    generator,
    random_scene,
)
from llava_mini_cli.demo.templates import AFTER, BEFORE, HELD_OUT, TRAIN
from llava_mini_cli.demo.tokens import BOS, CHAT_TEMPLATE, EOT, make_tokenizer, sample_texts
from llava_mini_cli.demo.video_questions import VIDEO_KINDS, does_move, video_caption, video_question
from llava_mini_cli.demo.videos import DIRECTIONS, STORIES, Actor, Story, Video, random_video

RED = Thing("circle", "red", "large", 1 / 6, 1 / 6)
BLUE = Thing("square", "blue", "small", 5 / 6, 0.5)
PLAIN = Look(level=128, tint=(0, 0, 0), slope=(0.0, 0.0), shade=0, noise=0.0, supersample=2, jpeg=None)


def test_caption_says_everything_in_reading_order() -> None:
    text = caption(Scene((RED, BLUE), "grey"))
    assert text == "A large red circle at the top left and a small blue square at the right."


def test_relations() -> None:
    assert relation_of(RED, BLUE, "x") == "left"
    assert relation_of(BLUE, RED, "x") == "right"
    assert relation_of(RED, BLUE, "y") == "above"
    assert relation_of(RED, Thing("cross", "red", "small", 0.2, 0.9), "x") is None


def test_references_name_one_thing_only() -> None:
    twin = Thing("circle", "green", "large", 0.5, 0.5)
    names = references(Scene((RED, twin), "black"), RED, without="size")
    assert "the circle" not in names
    assert "the red circle" in names
    assert "the shape at the top left" in names


@pytest.mark.parametrize("split", SPLITS)
def test_pictures_are_the_same_every_time(split: Split) -> None:
    def make() -> np.ndarray:
        rng = generator(split, 7)
        scene = random_scene(rng, split)
        return render(scene, random_look(rng, scene.background), 96, rng)

    assert np.array_equal(make(), make())


def test_a_thing_is_drawn_where_the_truth_says_in_its_colour() -> None:
    pixels = render(Scene((RED, BLUE), "grey"), PLAIN, 120, np.random.default_rng(0))
    assert tuple(pixels[20, 20]) == (220, 30, 35)
    assert tuple(pixels[60, 100]) == (35, 80, 225)
    assert tuple(pixels[60, 20]) == (128, 128, 128)


def test_held_out_differs_in_wording_layout_and_canvas() -> None:
    assert not set(CANVAS["train"]) & set(CANVAS["heldout"])
    for kind, wordings in HELD_OUT.items():
        assert not set(wordings) & set(TRAIN[kind]), kind
    assert set(HELD_OUT) == set(TRAIN)
    assert not set(BEFORE["train"]) & set(BEFORE["heldout"])
    assert not set(AFTER["train"]) & set(AFTER["heldout"])
    for count in (2, 3, 4):
        assert HELD_OUT_LAYOUTS[count]
        assert not set(TRAIN_LAYOUTS[count]) & set(HELD_OUT_LAYOUTS[count])


def test_things_stay_inside_their_cells() -> None:
    for index in range(200):
        for thing in random_scene(generator("train", index), "train").things:
            r = RADIUS[thing.size]
            assert thing.column / 3 - 1e-9 <= thing.x - r
            assert thing.x + r <= (thing.column + 1) / 3 + 1e-9


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_answers_to_image_questions_are_of_the_right_sort(kind: str) -> None:
    asked = 0
    for index in range(60):
        rng = generator("heldout", index)
        scene = random_scene(rng, "heldout")
        question = image_question(rng, scene, "heldout", kind)
        if question is None:
            continue
        asked += 1
        if kind == "json":
            answer = json.loads(question.answer)
            assert any(answer == {"shape": t.shape, "colour": t.colour, "size": t.size} for t in scene.things)
        elif kind == "count":
            assert 0 <= int(question.answer) <= len(scene.things)
        elif kind in ("colour", "shape", "size", "place"):
            assert question.answer in {getattr(t, kind) for t in scene.things}
        elif kind == "yesno":
            assert question.answer in ("yes", "no")
        elif kind == "background":
            assert question.answer == scene.background
    assert asked > 20


def test_yes_and_no_are_balanced() -> None:
    said: Counter[str] = Counter()
    for index in range(1500):
        rng = generator("train", index)
        question = image_question(rng, random_scene(rng, "train"), "train", "yesno")
        shown = video_question(rng, random_video(rng, "train"), "train", "video_yesno")
        assert question is not None
        assert shown is not None
        said.update((question.answer, shown.answer))
    assert 0.45 < said["yes"] / said.total() < 0.55


def test_existence_questions_are_true() -> None:
    for index in range(300):
        rng = generator("train", index)
        scene = random_scene(rng, "train")
        question = image_question(rng, scene, "train", "yesno")
        assert question is not None
        named = [t for t in scene.things if f" {t.colour} {t.shape}" in question.text]
        if (
            question.text.startswith(("Is there a", "Do you see a ", "Does the picture show"))
            and " of " not in question.text
        ):
            words = question.text.rstrip("?.").split()
            if any(c in words for c in ("red", "green", "blue", "yellow", "purple", "orange")):
                assert (question.answer == "yes") == bool(named), question


def test_a_moving_thing_moves_as_the_answer_says() -> None:
    for index in range(100):
        video = random_video(generator("heldout", index), "heldout", "move")
        first, last = (video.main[0].at(t) for t in (0.5, video.seconds - 0.5))
        assert first is not None
        assert last is not None
        shift = {"left": first.x - last.x, "right": last.x - first.x, "up": first.y - last.y, "down": last.y - first.y}
        assert video.direction is not None
        assert shift[video.direction] > 0.25
        for thing in (first, last):
            assert RADIUS[thing.size] <= thing.x <= 1 - RADIUS[thing.size]


def test_events_fill_whole_seconds_inside_the_video() -> None:
    for index in range(300):
        video = random_video(generator("train", index), "train")
        for actor in video.actors:
            for start, end in actor.spans:
                assert 0 <= start < end <= video.seconds


@pytest.mark.parametrize("story", STORIES)
def test_every_story_has_a_caption_and_questions(story: str) -> None:
    kinds: set[str] = set()
    for index in range(30):
        rng = generator("train", index)
        video = random_video(rng, "train", story)  # type: ignore[arg-type]
        assert video_caption(video).endswith(".")
        for kind in VIDEO_KINDS:
            question = video_question(rng, video, "train", kind)
            if question is not None:
                kinds.add(question.kind)
    assert {"video_yesno", "video_caption"} <= kinds


def test_stepping_stones_of_captions_are_true() -> None:
    scene = Scene((RED, BLUE), "grey")
    said: set[tuple[str, str]] = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        where, filled = (image_question(rng, scene, "train", kind) for kind in ("at", "filled"))
        assert where is not None
        assert filled is not None
        assert filled.answer == "top left and right"
        place = where.text.rstrip("?.").split(". ")[0]
        said.add((where.answer, "top left" if "top left" in place else "right" if "at the right" in place else ""))
    assert ("large red circle", "top left") in said
    assert ("small blue square", "right") in said
    assert {where for answer, where in said if answer == "nothing"} == {""}


@pytest.mark.parametrize("story", STORIES)
def test_whether_something_moves_is_true(story: Story) -> None:
    """Also of what stands still, and of what stands still beside something that moves."""
    said: Counter[str] = Counter()
    for index in range(80):
        rng = generator("train", index)
        video = random_video(rng, "train", story)
        question = does_move(rng, video, "train")
        moving = next((a for a in video.actors if a.velocity != (0.0, 0.0)), None)
        named = [a for a in video.actors if a.thing.shape in question.text or f"{a.thing.colour} " in question.text]
        directions = [way for way in DIRECTIONS if f" {way}" in question.text.split(" or ")[0]]
        truth = moving is not None and (not named or moving in named) and video.direction in directions
        if question.answer == "yes":
            assert truth, question
        said[question.answer] += 1
    assert (said["yes"] > 20) == (story == "move")


def test_captions_name_still_things_in_reading_order() -> None:
    still = tuple(Actor(thing, ((0, 5),)) for thing in (BLUE, RED))
    assert video_caption(Video("still", still, still, "black", 5)) == "A red circle and a blue square stay still."


def test_counted_blinks_are_those_of_the_truth() -> None:
    actor = Actor(RED, ((1, 2), (3, 5)))
    video = Video("blink", (actor,), (actor,), "black", 6)
    question = video_question(np.random.default_rng(0), video, "train", "event_count")
    assert question is not None
    assert question.answer == "2"
    assert [bool(video.scene(t + 0.5).things) for t in range(6)] == [False, True, False, True, True, False]


def test_tokenizer_takes_any_text_and_demo_words_are_single_tokens() -> None:
    tokenizer = make_tokenizer()
    text = "Wie heißt das? 你好 !"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    for word in (" circle", " yellow", "triangle", "yes", "left"):
        assert len(tokenizer.encode(word, add_special_tokens=False).ids) == 1, word
    unknown_to = [t for t in sample_texts(300) if 0 in tokenizer.encode(t).ids]
    assert not unknown_to  # id 0 is padding to pre-fusion
    assert tokenizer.encode("x").ids[0] == tokenizer.token_to_id(BOS)
    assert EOT in CHAT_TEMPLATE
