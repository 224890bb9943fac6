"""A text or a picture -> moments of an archive: the query is encoded by the archive's own CLIP, then searched for.

Prints nothing.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.errors import MediaError, ModelNotFound, UsageError
from llava_mini_cli.formats.archive.layout import ArchiveHeader
from llava_mini_cli.formats.archive.moments import Moment
from llava_mini_cli.formats.archive.near import NearFacts
from llava_mini_cli.formats.archive.reader import Archive
from llava_mini_cli.hub import check_name_from_archive, check_revision, model_digest
from llava_mini_cli.pieces import PieceLayout
from llava_mini_cli.pipelines.search_archive import Scanner, SearchOptions, Vector, check_searchable, combined, search


def find(
    archive: Archive, text: str | None, picture: str | None, options: SearchOptions, model: str | None = None
) -> list[Moment]:
    """The best moments for a text, a picture, or both.

    Args:
        model: where the archive's model is now; None: where it was.

    Raises:
        UsageError: it is another model, or the picture cannot be read. ModelError: it, or half of its CLIP, is missing.
    """
    check_searchable(archive)
    if options.approximate:
        NearFacts.read(archive.folder)
    if picture is not None:
        _check_picture(picture)
    name, revision = the_model(archive.header, model)
    from llava_mini_cli.engine.query import QueryEncoder
    from llava_mini_cli.engine.similarity import scan_batches, scan_file

    encoder = QueryEncoder(name, revision)
    queries: list[Vector] = []
    if text is not None:
        queries.append(encoder.text(text))
    if picture is not None:
        queries.append(encoder.picture(_pieces(picture, encoder.layout)))
    return search(archive, combined(queries), options, Scanner(scan_file, scan_batches))


def the_model(header: ArchiveHeader, given: str | None, revision: str | None = None) -> tuple[str, str | None]:
    """Name and revision of the model that an archive was made with.

    Args:
        given: where it is now, or another name of it; None: as the archive says, which may name the demo or a model
            that was fetched from the hub before. revision: as given; None: the archive's.

    Raises:
        UsageError: what is there, or was given, is another one. ModelNotFound: it is not where it was.
    """
    name = given or header.model
    if revision is None and name == header.model:
        revision = header.model_revision
    try:
        if given is None:
            check_name_from_archive(name)
        check_revision(revision)
        digest = model_digest(name, revision, local_files_only=given is None)
    except ModelNotFound as error:
        raise ModelNotFound(f"the archive was made with {header.name}: {error}; -m says where it is now") from error
    if digest != header.model_digest:
        raise UsageError(f"the archive was made with the model {header.name}, and '{name}' is another ({digest[:8]})")
    return name, revision


def _check_picture(path: str) -> None:
    """Raises `UsageError` where the header of a file is not that of a picture; decodes nothing."""
    from llava_mini_cli.media.open import probe

    try:
        if probe(path).kind != "image":
            raise UsageError(f"--image '{path}' is a video; give a picture")
    except MediaError as error:
        raise UsageError(f"--image '{Path(path)}': {error}") from error


def _pieces(path: str, layout: PieceLayout) -> NDArray[np.uint8]:
    from llava_mini_cli.config import SamplingOptions
    from llava_mini_cli.media.open import Unwatched, open_clip

    try:
        with open_clip(path, SamplingOptions(), opening=Unwatched(still=layout)) as clip:
            if clip.info.kind != "image":
                raise UsageError(f"--image '{path}' is a video; give a picture")
            return next(iter(clip)).pixels[0]
    except MediaError as error:
        raise UsageError(f"--image '{Path(path)}': {error}") from error
