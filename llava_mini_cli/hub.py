"""From the name of a model to a directory on this disk. Knows file names and the hub's cache, nothing of tensors."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from llava_mini_cli.config import PUBLISHED
from llava_mini_cli.errors import ModelNotFound, first_line
from llava_mini_cli.paths import is_file, is_folder, is_there
from llava_mini_cli.plain_files import read_object

DEMO = "demo"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
REVISION = re.compile(r"[\w-][\w./-]*")
LONGEST_HUB_ID = 96  # characters
DIGEST_BYTES = 1 << 16  # read from each end of a weight file
CHECK_TIMEOUT_S = 3.0  # for the one question whether the hub can be reached at all
CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
TOWER_FILES = ("*.json", "*.safetensors", "*.txt")


def is_hub_id(name: str) -> bool:
    """True if a name has the form of a hub id, `owner/name`."""
    return len(name) <= LONGEST_HUB_ID and HUB_ID.fullmatch(name) is not None


def find_model(name: str, revision: str | None = None, *, local_files_only: bool = False) -> Path:
    """The directory of a LLaVA-Mini checkpoint: a path, `demo`, or a hub id, downloaded when it can be.

    `demo` and the published checkpoint, which commands take by themselves, are never a folder of the working directory;
    such a folder is `./demo`.

    Raises:
        ModelNotFound: within seconds when the hub cannot be reached; the text says how to get the model.
    """
    if name == DEMO:
        return _demo_directory()
    if name == PUBLISHED:
        return _snapshot(name, revision, CHECKPOINT_FILES, local_files_only)
    path = _expanded(name)
    if is_folder(path):
        return path
    if is_there(path):
        raise ModelNotFound(f"model {name}: a file, not a checkpoint directory")
    if not is_hub_id(name):
        raise ModelNotFound(f"model {name}: no such directory, and not a hub id of the form owner/name")
    return _snapshot(name, revision, CHECKPOINT_FILES, local_files_only)


def check_model(name: str, revision: str | None = None) -> None:
    """Makes sure that a model is on this disk or that the hub has it; downloads nothing.

    Raises:
        ModelNotFound: as `find_model`.
    """
    if is_hub_id(name) and (name == PUBLISHED or not is_there(_expanded(name))):
        _cached_or_wanted(name, revision, CHECKPOINT_FILES, False, weights=True)
    else:
        find_model(name, revision)


def check_name_from_archive(name: str) -> None:
    """Makes sure that a model which only an archive names is the demo or one that the user has fetched from the hub.

    The archive may be somebody else's, who would otherwise choose which files of this disk are read as a model.

    Raises:
        ModelNotFound: it is a path, or could be taken for one.
    """
    if name == DEMO:
        return
    if not is_hub_id(name) or ".." in name:
        words = "is neither demo nor a hub id, and a path that only an archive names is not followed"
        raise ModelNotFound(f"'{name}' {words}")
    if name != PUBLISHED and is_there(name):
        raise ModelNotFound(f"'./{name}' lies in the working directory, and an archive does not choose it")


def check_revision(revision: str | None) -> None:
    """Raises `ModelNotFound` where a revision names no branch, tag or commit, but a way out of the hub's cache."""
    if revision is not None and (REVISION.fullmatch(revision) is None or ".." in revision):
        raise ModelNotFound(f"'{revision}' is no revision of a model")


def find_tower(name: str | None, checkpoint: Path, *, local_files_only: bool = False) -> Path:
    """The directory of the CLIP tower that a checkpoint's `mm_vision_tower` names.

    A relative directory is looked for in the checkpoint, beside it, then in the working directory; what has the form of
    a hub id is not looked for there, as the working directory may be somebody else's.

    Raises:
        ModelNotFound: it is nowhere.
    """
    if not name:
        raise ModelNotFound(f"model {checkpoint}: config.json names no mm_vision_tower")
    here = () if is_hub_id(name) else (_expanded(name),)
    for place in (checkpoint / name, checkpoint.parent / name, *here):
        if is_folder(place):
            return place
    if not is_hub_id(name):
        raise ModelNotFound(f"model {checkpoint}: its vision tower {name!r} is no directory here and no hub id")
    # Its weights are looked for by whoever reads them: a checkpoint may hold them itself.
    return _snapshot(name, None, TOWER_FILES, local_files_only, weights=False)


def _expanded(name: str) -> Path:
    """A path with the home directory in place of `~`; as it is where nobody has that name."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def weight_source(directory: Path) -> Path | None:
    """The weights' index, or the one file that holds them all; safetensors before torch pickles. None: neither."""
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        whole = directory / f"{stem}.{suffix}"
        for path in (whole.with_name(f"{whole.name}.index.json"), whole):
            if path.exists():
                return path
    return None


def model_digest(name: str, revision: str | None = None, *, local_files_only: bool = False) -> str:
    """16 hexadecimal digits that tell a model from others, whatever it is called and wherever it lies.

    Read from the configuration and from the size and both ends of every weight file, the vision tower's included, so
    that a large model is told in a moment.

    Raises:
        ModelNotFound: the model is not there.
    """
    checkpoint = find_model(name, revision, local_files_only=local_files_only)
    digest = hashlib.sha256()
    for directory in (checkpoint, *_tower_of(checkpoint)):
        for path in sorted(directory.glob("*")):
            if (path.name == "config.json" or path.suffix in (".safetensors", ".bin")) and is_file(path):
                digest.update(_ends(path))
    return digest.hexdigest()[:16]


def _tower_of(checkpoint: Path) -> tuple[Path, ...]:
    """The vision tower's directory, where the checkpoint names one that is there."""
    try:
        return (find_tower(read_object(checkpoint / "config.json").get("mm_vision_tower"), checkpoint),)
    except (OSError, ValueError, TypeError, ModelNotFound):
        return ()  # no tower of its own; a damaged configuration is told when the model is loaded


def _ends(path: Path) -> bytes:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        head = file.read(DIGEST_BYTES)
        file.seek(max(size - DIGEST_BYTES, 0))
        return size.to_bytes(8, "little") + head + file.read(DIGEST_BYTES)


def _demo_directory() -> Path:
    from llava_mini_cli.demo import model_dir

    return model_dir()


def _snapshot(
    repo: str, revision: str | None, patterns: Sequence[str], local_files_only: bool, *, weights: bool = True
) -> Path:
    """The cached snapshot of a hub repository, fetched first when it is not there and the hub answers."""
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    found = _cached_or_wanted(repo, revision, patterns, local_files_only, weights=weights)
    if isinstance(found, Path):
        return found
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=found))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        how = _how_to_get(repo, revision)
        raise ModelNotFound(f"model {repo}: download failed ({first_line(error)}); {how}") from error


def _how_to_get(repo: str, revision: str | None) -> str:
    return f"get it with: hf download {repo}" + (f" --revision {revision}" if revision else "")


def _cached_or_wanted(
    repo: str, revision: str | None, patterns: Sequence[str], local_files_only: bool, *, weights: bool
) -> Path | list[str]:
    """The cached snapshot of a hub repository, or patterns of the files that the hub has of it."""
    from huggingface_hub import constants, snapshot_download  # pyright: ignore[reportUnknownVariableType]
    from huggingface_hub.errors import LocalEntryNotFoundError

    lacking = "not in the cache"
    try:
        cached = Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns), local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    else:
        missing = _missing_file(cached, weights)
        if missing is None:
            return cached
        lacking = f"only partly in the cache ({missing} is missing)"
    how = _how_to_get(repo, revision)
    if local_files_only or constants.HF_HUB_OFFLINE:
        raise ModelNotFound(f"model {repo}: {lacking}, and offline; {how}")
    return _wanted_files(repo, revision, patterns, f"model {repo}: {lacking}, and the hub cannot be reached; {how}")


def _missing_file(snapshot: Path, weights: bool) -> str | None:
    """The first file that a broken download left out, if any: the hub's client takes every snapshot for whole.

    `weights`: they are needed, too.
    """
    if not (snapshot / "config.json").is_file():
        return "config.json"
    if not weights:
        return None
    source = weight_source(snapshot)
    if source is None:
        return "model.safetensors"
    if source.suffix != ".json":
        return None
    try:
        names = set(read_object(source)["weight_map"].values())
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return source.name
    return next((str(name) for name in sorted(names, key=str) if not is_file(snapshot / str(name))), None)


def _wanted_files(repo: str, revision: str | None, patterns: Sequence[str], unreached: str) -> list[str]:
    """Patterns of the files to fetch: torch pickles only where there are no safetensors. Asks the hub once, quickly.

    `unreached`: the message if it cannot be asked.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]  of whichever httpx the hub client uses
        RepositoryNotFoundError,
    )

    try:
        info = HfApi().model_info(repo, revision=revision, timeout=CHECK_TIMEOUT_S)
    except RepositoryNotFoundError as error:
        raise ModelNotFound(f"model {repo}: the hub has no such model, or it asks for a token (HF_TOKEN)") from error
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise ModelNotFound(unreached) from error
    names = [file.rfilename for file in info.siblings or []]
    has_safetensors = any(name.endswith(".safetensors") for name in names)
    return [*patterns] if has_safetensors else [*patterns, "*.bin"]
