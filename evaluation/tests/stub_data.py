"""Small data sets with the columns and types of the real ones, in the caches where lmms-eval looks for those.

Each has three rows; MME has four, as it wants its questions in pairs. Pictures and videos are rendered scenes.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetInfo, Features, Image, SplitDict, SplitInfo, Value
from datasets import Sequence as ListOf
from datasets.arrow_writer import ArrowWriter
from datasets.naming import camelcase_to_snakecase

Row = dict[str, Any]
TEXT, WHOLE, TRUTH = Value("string"), Value("int64"), Value("bool")
TEXTS, NUMBERS = ListOf(TEXT), ListOf(Value("float32"))
MV_FOLDERS = {  # where each part of MVBench has its videos
    "object_interaction": "star/Charades_segment",
    "action_sequence": "star/Charades_segment",
    "action_prediction": "star/Charades_segment",
    "action_localization": "sta/sta_video_segment",
    "moving_count": "clevrer/video_validation",
    "fine_grained_pose": "nturgbd_convert",
    "character_order": "perception/videos",
    "object_shuffle": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "moving_direction": "clevrer/video_validation",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "scene_transition": "scene_qa/video",
    "state_change": "perception/videos",
    "moving_attribute": "clevrer/video_validation",
    "action_antonym": "ssv2_video_mp4",
    "unexpected_action": "FunQA_test/test",
    "counterfactual_inference": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation",
    "action_count": "perception/videos",
}
COLOURS = ("red", "green", "blue", "yellow")


def write(
    home: Path, name: str, split: str, columns: dict[str, Any], rows: Sequence[Row], config: str = "default"
) -> None:
    """One split of a data set of the hub, as `datasets` caches it."""
    owner, own = name.split("/")
    own, features = camelcase_to_snakecase(own), Features(columns)
    folder = home / "datasets" / f"{owner}___{own}" / config / "0.0.0" / "stub"
    folder.mkdir(parents=True)
    with ArrowWriter(features=features, path=str(folder / f"{own}-{split}.arrow")) as writer:
        for row in rows:
            assert set(row) == set(columns)
            writer.write(features.encode_example(row))
        writer.finalize()
    splits = SplitDict()
    splits.add(SplitInfo(split, num_examples=len(rows), dataset_name=own))
    info = DatasetInfo(features=features, splits=splits, config_name=config, dataset_name=own, version="0.0.0")
    info.write_to_directory(str(folder))


def write_all(home: Path, pictures: Sequence[Path], videos: Sequence[Path]) -> None:
    """Every data set, and the videos where the tasks look for them.

    Args:
        home: the folder of caches, `HF_HOME`. pictures, videos: at least three of each.
    """
    shown = [{"bytes": path.read_bytes(), "path": None} for path in pictures]
    write_images(home, shown)
    write_videos(home, videos)


def write_images(home: Path, shown: Sequence[Row]) -> None:
    three = range(3)
    keys = ("id", "question_id", "question", "answer", "image_source", "category")
    write(
        home,
        "lmms-lab-encoder/POPE",
        "test",
        {**dict.fromkeys(keys, TEXT), "image": Image()},
        [
            {
                **dict(zip(keys, (str(n), str(n), "Is there a red circle?", "no", "stub", "random"), strict=True)),
                "image": shown[0],
            }
            for n in three
        ],
    )
    write(
        home,
        "lmms-lab-encoder/MME",
        "test",
        {"question_id": TEXT, "image": Image(), "question": TEXT, "answer": TEXT, "category": TEXT},
        [
            {
                "question_id": f"existence/{n // 2}.jpg",
                "image": shown[n // 2],
                "question": f"Is there a {COLOURS[n]} circle in this image? Please answer yes or no.",
                "answer": "Yes" if n % 2 == 0 else "No",
                "category": "existence" if n < 2 else "code_reasoning",
            }
            for n in range(4)
        ],
    )
    types = {"structural": TEXT, "semantic": TEXT, "detailed": TEXT}
    instructions = {
        "id": TEXT,
        "imageId": TEXT,
        "question": TEXT,
        "answer": TEXT,
        "fullAnswer": TEXT,
        "isBalanced": TRUTH,
        "groups": {"global": TEXT, "local": TEXT},
        "entailed": TEXT,
        "equivalent": TEXT,
        "types": types,
    }
    write(
        home,
        "lmms-lab-encoder/GQA",
        "testdev",
        instructions,
        [
            {
                "id": str(n),
                "imageId": f"n{n % 2}",
                "question": "What colour is the shape?",
                "answer": "red",
                "fullAnswer": "The shape is red.",
                "isBalanced": True,
                "groups": {"global": "", "local": "stub"},
                "entailed": "",
                "equivalent": str(n),
                "types": {"structural": "query", "semantic": "attr", "detailed": "stub"},
            }
            for n in three
        ],
        "testdev_balanced_instructions",
    )
    write(
        home,
        "lmms-lab-encoder/GQA",
        "testdev",
        {"id": TEXT, "image": Image()},
        [{"id": f"n{n}", "image": shown[n]} for n in three],
        "testdev_balanced_images",
    )
    write(
        home,
        "lmms-lab-encoder/textvqa",
        "validation",
        {
            "image_id": TEXT,
            "question_id": Value("int32"),
            "question": TEXT,
            "question_tokens": TEXTS,
            "image": Image(),
            "image_width": Value("int32"),
            "image_height": Value("int32"),
            "flickr_original_url": TEXT,
            "flickr_300k_url": TEXT,
            "answers": TEXTS,
            "image_classes": TEXTS,
            "set_name": TEXT,
        },
        [
            {
                "image_id": str(n),
                "question_id": n,
                "question": "what is shown?",
                "question_tokens": ["what", "is", "shown"],
                "image": shown[n],
                "image_width": 64,
                "image_height": 64,
                "flickr_original_url": "",
                "flickr_300k_url": "",
                "answers": ["a circle"] * 10,
                "image_classes": ["shape"],
                "set_name": "val",
            }
            for n in three
        ],
    )
    told = ("hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution")
    write(
        home,
        "lmms-lab-encoder/ScienceQA",
        "test",
        {
            "image": Image(),
            "question": TEXT,
            "choices": TEXTS,
            "answer": Value("int8"),
            **dict.fromkeys(told, TEXT),
        },
        [
            {
                "image": shown[n],
                "question": "Which colour is shown?",
                "choices": list(COLOURS[: n + 2]),
                "answer": n % 2,
                **dict.fromkeys(told, "stub" if n else ""),
            }
            for n in three
        ],
        "ScienceQA-IMG",
    )
    choices = [f"choice_{letter}" for letter in "abcd"]
    write(
        home,
        "lmms-lab-encoder/SEED-Bench",
        "test",
        {
            "answer": TEXT,
            **dict.fromkeys(choices, TEXT),
            "data_id": TEXT,
            "data_type": TEXT,
            "question": TEXT,
            "question_id": TEXT,
            "question_type_id": Value("int16"),
            "image": ListOf(Image()),
            "segment": ListOf(WHOLE),
        },
        [
            {
                "answer": "A",
                **dict(zip(choices, COLOURS, strict=True)),
                "data_id": str(n),
                "data_type": "video" if n == 2 else "image",
                "question": f"What colour is the {('circle', 'square', 'cross')[n]}?",
                "question_id": str(n),
                "question_type_id": 1,
                "image": list(shown[:3]) if n == 2 else [shown[0]],  # two questions about one picture, and a video
                "segment": [0, 1] if n == 2 else [],
            }
            for n in three
        ],
    )


def write_videos(home: Path, videos: Sequence[Path]) -> None:
    names = [f"{n}.mp4" for n in range(3)]
    folders = [home / "mvbench_video" / folder for folder in set(MV_FOLDERS.values())]
    for folder in [*folders, home / "mlvu", home / "egoschema" / "videos"]:
        folder.mkdir(parents=True)
        for name, video in zip(names, videos, strict=False):
            shutil.copy(video, folder / name)
    question = "What is moving?"
    for part in MV_FOLDERS:
        write(
            home,
            "OpenGVLab/MVBench",
            "train",
            {"video": TEXT, "question": TEXT, "candidates": TEXTS, "answer": TEXT},
            [
                {"video": names[n], "question": question, "candidates": list(COLOURS[:3]), "answer": "red"}
                for n in (0, 0, 1)
            ],
            part,
        )
    write(
        home,
        "sy1998/MLVU_dev",
        "test",
        {"video_name": TEXT, "duration": Value("float64"), "question": TEXT, "answer": TEXT, "task_type": TEXT},
        [
            {
                "video_name": names[0],
                "duration": 6.0,
                "question": f"{question}\n(A) a red circle\n(B) a green cross\n(C) nothing\n(D) a {COLOURS[n]} square",
                "answer": "ABC"[n],
                "task_type": ("count", "ego", "order")[n],
            }
            for n in range(3)
        ],
    )
    write(
        home,
        "lmms-eval/egoschema",
        "test",
        {"question_idx": TEXT, "question": TEXT, "video_idx": TEXT, "option": TEXTS, "answer": TEXT},
        [
            {
                "question_idx": str(n),
                "question": question,
                "video_idx": str(n),
                "option": [f"{'ABCDE'[k]}. {colour} circle" for k, colour in enumerate([*COLOURS, "purple"])],
                "answer": str(n),
            }
            for n in range(3)
        ],
        "Subset",
    )
