"""The demo model's tokenizer: byte-level BPE over the demo's own words, with Llama 3's special tokens and chat layout.

Every byte has a token, so any text can be encoded; words of the demo world are single tokens.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from llava_mini_cli.demo.image_questions import IMAGE_KINDS, IMAGE_STEPS, image_question
from llava_mini_cli.demo.scenes import generator, random_scene
from llava_mini_cli.demo.video_questions import VIDEO_KINDS, VIDEO_STEPS, video_question
from llava_mini_cli.demo.videos import random_video

LEARNED = 1008  # tokens before the special ones: 256 bytes and merges
CONTEXT = 32768  # tokens
BOS, EOT, PAD = "<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"
SPECIAL = (
    BOS,
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    PAD,
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    EOT,
    "<|python_tag|>",
    "<|reserved_special_token_3|>",
    "<|reserved_special_token_4|>",
    "<|reserved_special_token_5|>",
    "<|reserved_special_token_6|>",
    "<|reserved_special_token_7|>",
)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (  # Llama 3.1's layout: the dates come before the system text
    "{{- bos_token }}"
    "{%- if messages[0]['role'] == 'system' %}{%- set sys = messages[0]['content'] | trim %}"
    "{%- set rest = messages[1:] %}{%- else %}{%- set sys = '' %}{%- set rest = messages %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n' + sys + '<|eot_id|>' }}"
    "{%- for m in rest %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim"
    " + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
SYSTEM_WORDS = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language. A chat between a "
    "curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
    "answers to the user's questions."
    "\n\n"
    "system user assistant Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
)


def sample_texts(count: int = 6000) -> Iterator[str]:
    """Questions and answers of the train split, the words of the chat layout among them."""
    images, videos = (*IMAGE_KINDS, *IMAGE_STEPS), (*VIDEO_KINDS, *VIDEO_STEPS)
    for index in range(count):
        rng = generator("train", index)
        scene, video = random_scene(rng, "train"), random_video(rng, "train")
        asked = image_question(rng, scene, "train", images[index % len(images)])
        shown = video_question(rng, video, "train", videos[index % len(videos)])
        for question in (asked, shown):
            if question is not None:
                yield f"\n{question.text}"
                yield question.answer
        if index % 50 == 0:
            yield SYSTEM_WORDS


def make_tokenizer() -> Tokenizer:
    """The tokenizer; the same every time."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=LEARNED, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator(sample_texts(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL))  # pyright: ignore[reportUnknownMemberType]
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, bos)]
            ),
        ]
    )
    return tokenizer


def write_tokenizer(directory: Path) -> Tokenizer:
    """Makes the tokenizer and writes `tokenizer.json` and `tokenizer_config.json` into a directory."""
    tokenizer = make_tokenizer()
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOT,
        "pad_token": PAD,
        "unk_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "padding_side": "right",
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return tokenizer
