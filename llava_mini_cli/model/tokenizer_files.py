"""The tokenizer of a checkpoint, looked at and tried before transformers loads it.

A checkpoint may be somebody else's: no code of it runs, and what its tokenizer does is bounded.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from transformers import AutoTokenizer, PreTrainedConfig

from llava_mini_cli.errors import CheckpointError, first_line, is_fault
from llava_mini_cli.hub import DEMO, find_model
from llava_mini_cli.model import tokenizer_trial
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.fields import NULL, OBJECT, SWITCH, TEXT, Rule, checked_fields, list_of, number, one_of, shown
from llava_mini_cli.model.weight_headers import member, read_json
from llava_mini_cli.plain_files import MOST_JSON_BYTES
from llava_mini_cli.trial_process import run_trial

TRIAL_SECONDS = 60.0  # by the clock, on a machine that does much else; of its own time a trial has less
ENDLESS = "it does not come to an end"
MOST_TOKENIZER_BYTES = 256 << 20
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
CLASSES = (  # of transformers, which run no code of a checkpoint's
    "PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend", "LlamaTokenizer", "LlamaTokenizerFast",
    "CodeLlamaTokenizer", "CodeLlamaTokenizerFast", "CLIPTokenizer", "CLIPTokenizerFast",
)  # fmt: skip
_TOKEN = TEXT | OBJECT | NULL
RULES: dict[str, Rule] = {
    "tokenizer_class": one_of(*CLASSES) | NULL,
    "chat_template": TEXT | OBJECT | list_of(OBJECT, 1, 64) | NULL,
    "bos_token": _TOKEN,
    "eos_token": _TOKEN,
    "pad_token": _TOKEN,
    "unk_token": _TOKEN,
    "added_tokens_decoder": OBJECT,
    "model_max_length": number(0) | NULL,
    "padding_side": one_of("left", "right"),
    "clean_up_tokenization_spaces": SWITCH | NULL,
    "add_bos_token": SWITCH | NULL,
    "add_eos_token": SWITCH | NULL,
    "add_prefix_space": SWITCH | NULL,
    "legacy": SWITCH | NULL,
    # Of these transformers would open files, wherever they are.
    "gguf_file": NULL,
    "init_inputs": list_of(NULL, 0, 0) | NULL,
    "tokenizer_object": NULL,
    "__slow_tokenizer": NULL,
    "vocab": NULL,
    "merges": NULL,
}
ANY_CLASS = {key: rule for key, rule in RULES.items() if key != "tokenizer_class"}  # for models that are not LLaVA-Mini
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


def load_tokenizer(checkpoint: Path, config: PreTrainedConfig | None = None) -> Any:
    """The tokenizer of a checkpoint directory.

    Args:
        config: of the model that the tokenizer is for, where it is no LLaVA-Mini; that in the directory is not asked.

    Raises:
        CheckpointError: its files are missing or damaged, or it needs code of the checkpoint's, which is not run.
    """
    if not any((checkpoint / name).exists() for name in VOCABULARIES):
        raise CheckpointError(f"{checkpoint}: no tokenizer (tokenizer.json or tokenizer.model)")
    check_tokenizer(checkpoint, RULES)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            checkpoint, config=config or LlavaMiniConfig(), local_files_only=True, trust_remote_code=False
        )
    except BaseException as error:  # transformers raises whatever it trips over
        if not is_fault(error):
            raise
        raise CheckpointError(f"{checkpoint}: the tokenizer cannot be read ({first_line(error)})") from error
    return tokenizer


def check_tokenizer(checkpoint: Path, rules: Mapping[str, Rule]) -> None:
    """Makes sure that a tokenizer may be loaded; `rules`: of its configuration's fields.

    Raises:
        CheckpointError: its files are damaged or may not be read, or it does not do its work in a bounded process.
    """
    fields = _look(checkpoint, rules)
    if not checkpoint.resolve().is_relative_to(find_model(DEMO).resolve()):  # which comes with the package
        _try(checkpoint, fields)


def _look(checkpoint: Path, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """The fields of `tokenizer_config.json`, once every file that transformers may open is one that it may read."""
    for path in _files(checkpoint):
        member(checkpoint, str(path.relative_to(checkpoint)))
        bound = MOST_TOKENIZER_BYTES if path.name in (*VOCABULARIES, "merges.txt") else MOST_JSON_BYTES
        if path.stat().st_size > bound:
            raise CheckpointError(f"{path}: larger than {bound >> 20} MiB")
    if (checkpoint / "added_tokens.json").exists():
        read_json(checkpoint / "added_tokens.json")
    special = checkpoint / "special_tokens_map.json"
    for key in read_json(special) if special.exists() else ():
        if not key.endswith(("_token", "_special_tokens")):  # transformers takes others for settings, files to open too
            raise CheckpointError(f"{special}: {shown(key)} is no special token")
    file = checkpoint / "tokenizer_config.json"
    fields = read_json(file) if file.exists() else {}
    if "auto_map" in fields:
        raise CheckpointError(f"{file}: auto_map: the tokenizer needs code of its own, which is not run")
    checked_fields(fields, rules, file)
    return fields


def _files(checkpoint: Path) -> Iterator[Path]:
    """The files of a directory that belong to its tokenizer, those in the folder of further templates included."""
    for folder in (checkpoint, checkpoint / "additional_chat_templates"):
        for path in sorted(folder.glob("*")):
            if path.suffix in (".json", ".jinja", ".model", ".txt") and not path.name.endswith(".index.json"):
                yield path


def check_image_template(checkpoint: Path, processor: Any) -> None:
    """Makes sure that a processor's chat template may be used for a question about an image, if it has one.

    Raises:
        CheckpointError: it is no text, or it does not do its work in a bounded process.
    """
    template = getattr(processor, "chat_template", None)
    if isinstance(template, dict):
        template = cast("dict[str, Any]", template).get("default")
    if template is None:
        return
    if not isinstance(template, str):
        raise CheckpointError(f"{checkpoint}: chat_template {shown(template)}: must be a text")
    special: dict[str, Any] = processor.tokenizer.special_tokens_map
    tokens = {name: _token(value) for name, value in special.items() if not isinstance(value, list)}
    _run(checkpoint, {"directory": None, "template": template, "place": str(checkpoint), "tokens": tokens}, True)


def _try(checkpoint: Path, fields: dict[str, Any]) -> None:
    """Raises `CheckpointError` where the tokenizer or its chat template does not do its work in a bounded process."""
    template, place = _template(checkpoint, fields)
    tokens = {key: _token(fields[key]) for key in _SPECIAL if fields.get(key) is not None}
    directory = str(checkpoint.resolve())
    _run(checkpoint, {"directory": directory, "template": template, "place": str(place), "tokens": tokens}, False)


def _run(checkpoint: Path, asked: dict[str, Any], has_image: bool) -> None:
    """Has the script do its work. Raises `CheckpointError` where it does not."""
    asked = {**asked, "has_image": has_image}
    try:
        trial = run_trial(tokenizer_trial.__file__, asked, TRIAL_SECONDS, TOKENIZERS_PARALLELISM="false")
    except OSError as error:
        raise CheckpointError(f"{checkpoint}: no process to try the tokenizer in: {first_line(error)}") from error
    how = ENDLESS if trial.is_endless else f"its process ended with {trial.status}"
    said: list[list[str]] = trial.said
    begun = [words for what, words in said if what == "begins"]
    failed = [words for what, words in said if what == "failed"]
    if not said or said[-1][0] != "done":
        place = begun[-1] if begun else str(checkpoint)
        words = "cannot be used" if place.endswith("chat_template") else "the tokenizer cannot be read"
        raise CheckpointError(f"{place}: {words} ({' '.join(failed[-1].split()) if failed else how})")


def _template(checkpoint: Path, fields: dict[str, Any]) -> tuple[str | None, Path]:
    """The chat template that transformers takes, and the file that it stands in."""
    file = checkpoint / "chat_template.jinja"
    if file.exists():
        try:
            return file.read_text(encoding="utf-8"), file
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file}: cannot be read ({first_line(error)})") from error
    file, template = checkpoint / "tokenizer_config.json", fields.get("chat_template")
    if isinstance(template, list):
        template = {one.get("name"): one.get("template") for one in cast("list[dict[str, Any]]", template)}
    if isinstance(template, dict):
        template = cast("dict[str, Any]", template).get("default")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{file}: chat_template {shown(template)}: must be a text")
    return template, file


def _token(value: Any) -> str:
    return str(cast("dict[str, Any]", value).get("content", "") if isinstance(value, dict) else value)
