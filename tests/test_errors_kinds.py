"""The kind of a system's error: what lies in the machine and in the moment is told from what lies in the medium."""

import errno
from pathlib import Path

import pytest

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import MEDIA_ERROR_KINDS, PASSING_KINDS, MediaError, kind_of
from llava_mini_cli.formats.job import Job
from llava_mini_cli.media.open import open_clip
from llava_mini_cli.pipelines.open_job import fault_of

MOMENT = {
    errno.ENOMEM: "out_of_memory",
    errno.EMFILE: "no_resources",
    errno.ENFILE: "no_resources",
    errno.EAGAIN: "no_resources",
    errno.ENOSPC: "no_resources",
    errno.EDQUOT: "no_resources",
    errno.ESTALE: "unreachable",
    errno.EIO: "unreachable",
    errno.ETIMEDOUT: "unreachable",
    errno.EHOSTDOWN: "unreachable",
    errno.ENOTCONN: "unreachable",
    errno.ECONNREFUSED: "unreachable",
}
MEDIUM = {
    errno.ENOENT: "not_found",
    errno.ENOTDIR: "not_found",
    errno.ENAMETOOLONG: "not_found",
    errno.EACCES: "unreadable",
    errno.ELOOP: "unreadable",
    errno.EINVAL: "unreadable",
}


@pytest.mark.parametrize(("number", "kind"), [*MOMENT.items(), *MEDIUM.items()])
def test_an_error_of_the_system_has_its_kind(number: int, kind: str) -> None:
    assert kind_of(OSError(number, "said")) == kind
    assert kind in MEDIA_ERROR_KINDS
    assert (kind in PASSING_KINDS) == (number in MOMENT)


def test_an_error_without_a_number_has_a_kind() -> None:
    assert kind_of(OSError("said")) == "unreadable"
    assert kind_of(TimeoutError("said")) == "unreachable"


@pytest.mark.parametrize(("number", "kind"), [(errno.ESTALE, "unreachable"), (errno.ENOMEM, "out_of_memory")])
def test_a_medium_that_the_system_does_not_give_is_not_called_unreadable(
    number: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG")

    def refuse(self: Path, **_: object) -> None:
        raise OSError(number, "Said", str(self))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(MediaError, match=r"^said$") as caught:
        open_clip(path, SamplingOptions())
    assert caught.value.kind == kind
    fault = fault_of(Job(str(path), "a.png", ()))
    assert fault is not None
    assert (fault.stage, fault.kind, fault.message) == ("decode", kind, "said")
