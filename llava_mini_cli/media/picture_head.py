"""The first bytes of a file: whether they may be those of a picture, and the size of a WebP. Nothing is settled.

What is a picture, and of which kind, is told by the process that decodes it.
"""

from llava_mini_cli.media.camera_raw import SIGNATURES

HEAD = 64  # bytes that are looked at

_SIGNS = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"\0\0\1\0"),
    *(b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"),
    *(b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"MM\0+", b"II+\0"),
    *(b"P%c" % letter for letter in b"0123456fFy7"),
)
_BRANDS = frozenset({b"avif", b"avis", b"mif1", b"mif2", b"msf1", b"heic", b"heix", b"heim", b"heis"})


def may_be_picture(head: bytes) -> bool:
    """False for what surely is no picture, such as a video. `head`: the file's first `HEAD` bytes."""
    if head[4:8] == b"ftyp" and head[8:12] in _BRANDS:
        return True
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return True
    return head.startswith(_SIGNS) or any(head.startswith(sign, at) for _, at, sign in SIGNATURES)


def webp_size(head: bytes) -> tuple[int, int]:
    """Width and height that the head of a WebP tells, in pixels; (0, 0) for any other file."""
    if not (head.startswith(b"RIFF") and head[8:12] == b"WEBP"):
        return 0, 0
    kind, body = head[12:16], head[20:30].ljust(10, b"\0")
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return 0, 0
