"""What vLLM's process keeps on disk and in shared memory. It takes that away itself, or its parent does."""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")


def new_folder() -> Path:
    """A folder for all temporary files of one process of vLLM and of those that it starts."""
    return Path(tempfile.mkdtemp(prefix="llava-mini-vllm-"))


def take_away(folder: Path) -> None:
    """Removes a folder, and the memory that is named as the files in it are: one for each group of processes."""
    with suppress(OSError):  # another thread or process may do the same at this moment
        for group in folder.glob("vllm_dist_*"):
            for memory in SHARED_MEMORY.glob(f"{group.name}*"):
                memory.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
