"""`--hosts`: which places of the net a pattern means, told from every spelling of a URL."""

import pytest
from yarl import URL

from llava_mini_cli.errors import FetchError, UsageError
from llava_mini_cli.formats.fetch.hosts import Place, check_patterns, check_place, host_place, place_of


def is_allowed(url: str, *patterns: str) -> bool:
    """Whether a URL may be asked, as downloads tell it: of the web by the host that aiohttp connects to."""
    web = URL(url) if url.lower().startswith("http") else None
    place = place_of(url) if web is None else host_place(web.raw_host or "", web.port)
    try:
        check_place(place, patterns)
    except FetchError as error:
        return (error.kind, str(error)) != ("refused", f"'{place}' is not among --hosts")
    return True


@pytest.mark.parametrize(
    ("url", "pattern", "allowed"),
    [
        ("http://good.example/a", "good.example", True),
        ("https://good.example/a", "good.example", True),
        ("HTTP://GOOD.Example/a", "good.example", True),
        ("http://good.example/a", "GOOD.example", True),
        ("http://good.example./a", "good.example", True),
        ("http://good.example/a", "good.example.", True),
        ("http://good.example@evil/a", "good.example", False),
        ("http://good.example:80@evil/a", "good.example", False),
        ("http://evil/good.example", "good.example", False),
        ("http://evil?good.example", "good.example", False),
        ("http://evil#@good.example/a", "good.example", False),
        ("http://good.example.evil/a", "good.example", False),
        ("http://good.example.evil/a", "good.example*", True),
        ("http://notgood.example/a", "good.example", False),
        ("http://goodxexample/a", "good.example", False),
        ("http://a.good.example/a", "*.good.example", True),
        ("http://a.b.good.example/a", "*.good.example", True),
        ("http://good.example/a", "*.good.example", False),
        ("http://cdn1.example/a", "cdn?.example", True),
        ("http://cdn12.example/a", "cdn?.example", False),
        ("http://good.example:8080/a", "good.example", True),
        ("http://good.example:8080/a", "good.example:8080", True),
        ("http://good.example:8080/a", "good.example:80", False),
        ("http://good.example/a", "good.example:80", True),
        ("https://good.example/a", "good.example:80", False),
        ("https://good.example/a", "https://good.example", True),
        ("http://good.example/a", "https://good.example", False),
        ("http://127.0.0.1/a", "127.0.0.1", True),
        ("http://127.0.0.1:9/a", "127.0.0.*", True),
        ("http://2130706433/a", "127.0.0.1", False),
        ("http://169.254.169.254/a", "*.example", False),
        ("http://[::1]/a", "::1", True),
        ("http://[::1]/a", "[::1]", True),
        ("http://[0:0:0:0:0:0:0:1]:8/a", "[::1]:8", True),
        ("http://[::1]:9/a", "[::1]:8", False),
        ("http://[::2]/a", "[::1]", False),
        ("http://b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example/a", "xn--bcher-kva.example", True),
        ("http://xn--bcher-kva.example/a", "b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example", True),
        ("http://\N{CIRCLED LATIN SMALL LETTER E}vil.example/a", "evil.example", True),  # that is what is asked
        ("http://g\N{CYRILLIC SMALL LETTER O}od.example/a", "good.example", False),
        ("s3://photos/a", "s3://photos", True),
        ("s3://photos.good.example/a", "*.good.example", False),  # anybody can make a bucket of that name
        ("s3://photos/a", "photos", False),
        ("s3://photos/a", "gs://photos", False),
        ("gs://photos/a", "gs://*", True),
        ("S3://photos/a", "s3://ph?tos", True),
        ("s3://photos@evil/a", "s3://photos", False),
        ("hf://datasets/user/name/a", "huggingface.co", True),
        ("hf://datasets/user/name/a", "datasets", False),
        ("ftp://good.example/a", "good.example", True),
        ("ftp://good.example@evil/a", "good.example", False),
        ("ftp://good.example:x/a", "*.example", False),
        ("sftp://good.example:22/a", "good.example:22", True),
    ],
)
def test_which_places_a_pattern_means(url: str, pattern: str, allowed: bool) -> None:
    assert is_allowed(url, pattern) is allowed


def test_one_of_several_patterns_is_enough_and_none_means_anywhere() -> None:
    assert is_allowed("http://b.example/", "a.example", "b.example")
    assert not is_allowed("http://c.example/", "a.example", "b.example")
    assert is_allowed("http://c.example/")


def test_the_hub_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example:8080/x")
    assert place_of("hf://datasets/a/b/c") == Place("mirror.example", 8080)


def test_what_a_redirect_is_refused_for() -> None:
    with pytest.raises(FetchError, match=r"^it leads on to 'evil', which is not among --hosts$"):
        check_place(Place("evil", 80), ("good",), is_redirect=True)


@pytest.mark.parametrize("pattern", ["", " ", "a b", "http://", "good.example/x", "s3://photos/x", "a\tb"])
def test_patterns_that_can_match_nothing(pattern: str) -> None:
    with pytest.raises(UsageError, match=r"--hosts: '.*' is no host"):
        check_patterns(("fine", pattern))
    check_patterns(("*", "a.example:8", "[::1]:8", "s3://a-b"))
