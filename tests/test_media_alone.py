"""A file sees itself: what names other files, draws, or has a pattern for a name is no medium."""

import re
import subprocess
from pathlib import Path

import media_films as films
import pytest

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import MediaError
from llava_mini_cli.media.containers import WHITELIST
from llava_mini_cli.media.open import open_clip, probe

NOT_OPENED = ("unreadable", "not a picture or video of a kind that is opened")
DASH = """<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" %s minBufferTime="PT1S"
profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period start="PT0S">
<AdaptationSet contentType="video" mimeType="video/mp4">%s
<Representation id="0" mimeType="video/mp4" codecs="avc1.64000a" bandwidth="1000" width="64" height="48">%s
</Representation></AdaptationSet></Period></MPD>"""
STATIC = DASH % ('type="static" mediaPresentationDuration="PT2S"', "", "<BaseURL>secret.mp4</BaseURL>")
# Its segments never end: ffmpeg waits for the next one, which is always there.
DYNAMIC = DASH % (
    'type="dynamic" minimumUpdatePeriod="PT1S" availabilityStartTime="2020-01-01T00:00:00Z"',
    '<SegmentTemplate timescale="1" duration="2" media="secret.mp4" startNumber="1"/>',
    "",
)
ID = "urn:uuid:{0}{0}{0}{0}{0}{0}{0}{0}-{0}{0}{0}{0}-{0}{0}{0}{0}-{0}{0}{0}{0}-{0}{0}{0}{0}{0}{0}{0}{0}{0}{0}{0}{0}"
IDS = {f"id{number}": ID.format(number) for number in range(1, 7)}
ASSETS = """<AssetMap xmlns="http://www.smpte-ra.org/schemas/429-9/2007/AM"><Id>{id1}</Id><AssetList>
<Asset><Id>{id2}</Id><ChunkList><Chunk><Path>track.mxf</Path></Chunk></ChunkList></Asset></AssetList></AssetMap>"""
IMF = """<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"
xmlns:cc="http://www.smpte-ra.org/schemas/2067-2/2016"><Id>{id1}</Id><ContentTitle>x</ContentTitle>
<EditRate>25 1</EditRate><SegmentList><Segment><Id>{id3}</Id><SequenceList><cc:MainImageSequence><Id>{id4}</Id>
<TrackId>{id5}</TrackId><ResourceList><Resource><Id>{id6}</Id><EditRate>25 1</EditRate>
<IntrinsicDuration>50</IntrinsicDuration><EntryPoint>0</EntryPoint><SourceDuration>50</SourceDuration>
<RepeatCount>1</RepeatCount><TrackFileId>{id2}</TrackFileId></Resource></ResourceList></cc:MainImageSequence>
</SequenceList></Segment></SegmentList></CompositionPlaylist>"""
HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nsecret.mp4\n"
CONCAT = "ffconcat version 1.0\nfile secret.mp4\n"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="64" height="48"><rect width="64" height="48" fill="red"/></svg>'
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
METADATA = ";FFMETADATA1\ntitle=x\n"
VOBSUB = "# VobSub index file, v7 (do not modify this line!)\nid: en, index: 0\ntimestamp: 00:00:01:000, filepos: 0\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos and a picture that a stranger's file in the same folder would like to show."""
    folder = tmp_path_factory.mktemp("secret")
    films.film(folder / "secret.mp4", 60, *films.H264, size=(64, 48))
    films.film(folder / "track.mxf", 60, "-c:v", "mpeg2video", "-g", "1", fps="25", size=(64, 48))
    films.ffmpeg("-i", folder / "secret.mp4", "-frames:v", "1", folder / "seq1.png")
    films.ffmpeg("-i", folder / "secret.mp4", "-frames:v", "1", folder / "seq1.jpg")
    (folder / "ASSETMAP.xml").write_text(ASSETS.format(**IDS))
    return folder


def failure(path: Path, **options: object) -> tuple[str, str]:
    settings = SamplingOptions(decode_timeout=20, **options)  # type: ignore[arg-type]
    with pytest.raises(MediaError) as caught, open_clip(path, settings) as clip:
        list(clip)
    with pytest.raises(MediaError) as header:
        probe(path, 20)
    assert (header.value.kind, str(header.value)) == (caught.value.kind, str(caught.value))
    return caught.value.kind, str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dash.mp4", STATIC),
        ("dash.mpd", STATIC),
        ("dynamic.mp4", DYNAMIC),
        ("imf.mp4", IMF.format(**IDS)),
        ("list.m3u8", HLS),
        ("list.mkv", CONCAT),
        ("drawing.svg", SVG),
        ("drawing.mp4", SVG),
        ("session.mp4", SDP),
        ("data.mp4", METADATA),
        ("subtitles.mp4", VOBSUB),
        ("seq%d.png", "junk!"),
        ("seq%d.jpg", "junk!"),
        ("seq%01d.jpg", "junk!"),
        ("seq?.jpg", "junk!"),
        ("seq*.png", "junk!"),
        ("seq[0-9].png", "junk!"),
        ("seq1.tga", "junk!"),
        ("noise.yuv", "junk! " * 9999),
        ("noise.cdg", "junk! " * 9999),
    ],
)
def test_what_is_not_opened(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    assert failure(folder / name) == NOT_OPENED
    if "%" not in name:
        assert failure(folder / name, decoder="decord") == NOT_OPENED  # which would open much of it by itself


def test_raw_video_that_goes_on_in_files_beside_it(tmp_path: Path) -> None:
    """Magic Lantern's: a.M00, a.M01, ... follow a.MLV, found by name alone."""
    head = b"MLVI" + (52).to_bytes(4, "little") + b"v2.0\x00\x00\x00\x00" + bytes(36)
    (tmp_path / "a.mp4").write_bytes(head + bytes(200))
    assert failure(tmp_path / "a.mp4") == NOT_OPENED


def test_a_film_whose_frames_lie_in_another_file(folder: Path) -> None:
    """QuickTime names another file by an alias in its data references: ffmpeg is not told to follow it."""
    whole = (folder / "secret.mp4").read_bytes()
    # Lengths of the volume and the file, their names, levels up and down, then the path (record 2) and the end (-1).
    alias = bytes(10 + 28 + 12 + 64 + 16) + b"\0\1\0\1" + bytes(16) + b"\0\2\0\x0cx/secret.mp4" + b"\xff\xff\0\0"
    entry = (12 + len(alias)).to_bytes(4, "big") + b"alis" + bytes(4) + alias
    plain = b"\x00\x00\x00\x0curl \x00\x00\x00\x01"
    assert whole.count(plain) == 1
    moved = bytearray(whole.replace(plain, entry))
    for box in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        place = moved.index(box) - 4
        size = int.from_bytes(moved[place : place + 4], "big") + len(entry) - len(plain)
        moved[place : place + 4] = size.to_bytes(4, "big")
    moov = moved[moved.index(b"moov") - 4 :]
    (folder / "reference.mov").write_bytes(whole[: whole.index(b"ftyp") + 28] + moov)
    followed = subprocess.run(
        [films.FFMPEG, "-v", "error", "-enable_drefs", "1", "-i", "reference.mov", "-f", "framecrc", "-"],
        cwd=folder,
        capture_output=True,
        check=False,
    )
    assert followed.stdout.count(b"\n0,") > 10  # the film is there for whoever follows
    for decoder in ("auto", "decord"):
        with pytest.raises(MediaError) as caught, open_clip(folder / "reference.mov", SamplingOptions(decoder=decoder)):
            pass
        assert caught.value.kind == "empty"  # its own file holds none of the frames


def test_every_name_on_the_list_stands_there_once_and_most_are_known() -> None:
    """An ffmpeg that is older, or built with less, lacks some."""
    names = WHITELIST.split(",")
    assert len(names) == len(set(names))
    told = subprocess.run([films.FFMPEG, "-demuxers"], capture_output=True, text=True, check=True).stdout
    rows = [match[1] for line in told.splitlines() if (match := re.match(r" D\S* +(\S+)", line))]
    assert set(names) <= {name for row in rows for name in row.split(",")}


def test_what_must_never_be_on_the_list() -> None:
    others = "dash hls imf concat image2 mlv vobsub webm_dash_manifest sdp rtsp rtp sap dvdvideo avisynth vapoursynth"
    texts = "lavfi svg_pipe tty sbg ffmetadata libgme libopenmpt libmodplug rawvideo"
    assert not set(f"{others} {texts}".split()) & set(WHITELIST.split(","))
