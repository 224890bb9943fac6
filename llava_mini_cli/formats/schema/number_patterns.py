"""Regular expressions for the numbers of a range, as a model may write them. Knows nothing of schemas."""

from decimal import Decimal

LARGEST_INTEGER = 2**53 - 1  # where a range has no end: what every reader of JSON holds exactly
LARGEST_NUMBER = 10**15
PLACES = 6  # behind the point


def integers(least: int, most: int) -> str:
    """An expression for the integers from `least` to `most`, both included, without zeros in front."""
    parts: list[str] = []
    if least < 0:
        parts += [f"-{part}" for part in _naturals(max(1, -most), -least)]
    if most >= 0:
        parts += _naturals(max(0, least), most)
    return "|".join(parts)


def decimals(least: Decimal, most: Decimal) -> str:
    """An expression for decimal numbers from `least` to `most`, both included.

    They have up to `PLACES` digits behind a point, and neither bound may have more of them.
    """
    parts: list[str] = []
    if least < 0:
        parts += [f"-({part})" for part in _positive(max(Decimal(0), -most), -least)]
    if most >= 0:
        parts += _positive(max(Decimal(0), least), most)
    return "|".join(parts)


def _positive(least: Decimal, most: Decimal) -> list[str]:
    first, last = int(least), int(most)
    low, high = _fraction(least), _fraction(most)
    if first == last:
        if not low:
            return [f"{first}{_at_most(high)}"]
        return [rf"{first}\.{_between(low, high, PLACES)}"]
    parts = [f"{first}{_at_least(low)}", f"{last}{_at_most(high)}"]
    if last - first > 1:
        inner = "|".join(_naturals(first + 1, last - 1))
        parts.append(f"({inner}){_at_least('')}")
    return parts


def _fraction(number: Decimal) -> str:
    """The digits behind the point, without zeros at the end."""
    return f"{number % 1:f}".partition(".")[2].rstrip("0")


def _at_least(digits: str) -> str:
    """A point and digits that are no less than these; nothing where these are none."""
    return rf"\.{_no_less(digits, PLACES)}" if digits else rf"(\.[0-9]{{1,{PLACES}}})?"


def _at_most(digits: str) -> str:
    """Nothing, or a point and digits that are no more than these."""
    return rf"(\.{_no_more(digits, PLACES)})?" if digits else rf"(\.0{{1,{PLACES}}})?"


def _between(low: str, high: str, room: int) -> str:
    """Digits behind a point that are no less than some and no more than others."""
    begin, end = low[0], high[0]
    if begin == end and low[1:]:
        return begin + _between(low[1:], high[1:], room - 1)
    last = end + (f"({_no_more(high[1:], room - 1)})?" if high[1:] else f"0{{0,{room - 1}}}")
    if begin == end:
        return last
    first = begin + (_no_less(low[1:], room - 1) if low[1:] else f"[0-9]{{0,{room - 1}}}")
    inner = [f"[{int(begin) + 1}-{int(end) - 1}][0-9]{{0,{room - 1}}}"] if int(end) - int(begin) > 1 else []
    return f"({'|'.join([first, *inner, last])})"


def _no_less(digits: str, room: int) -> str:
    first, rest = digits[0], digits[1:]
    same = first + (_no_less(rest, room - 1) if rest else f"[0-9]{{0,{room - 1}}}")
    return same if first == "9" else f"({same}|[{int(first) + 1}-9][0-9]{{0,{room - 1}}})"


def _no_more(digits: str, room: int) -> str:
    first, rest = digits[0], digits[1:]
    same = first + (f"({_no_more(rest, room - 1)})?" if rest else f"0{{0,{room - 1}}}")
    return same if first == "0" else f"({same}|[0-{int(first) - 1}][0-9]{{0,{room - 1}}})"


def _naturals(least: int, most: int) -> list[str]:
    """An expression for each number of digits."""
    parts: list[str] = []
    for length in range(len(str(least)), len(str(most)) + 1):
        low = max(least, 10 ** (length - 1) if length > 1 else 0)
        parts.append(_same_length(str(low), str(min(most, 10**length - 1))))
    return parts


def _same_length(low: str, high: str) -> str:
    """Numbers between two that have as many digits each."""
    if not low:
        return ""
    rest = len(low) - 1
    if not low.strip("0") and not high.strip("9"):
        return f"[0-9]{{{len(low)}}}"
    if low[0] == high[0]:
        return low[0] + _same_length(low[1:], high[1:])
    first, last = int(low[0]), int(high[0])
    parts: list[str] = []
    if low[1:].strip("0"):
        parts.append(low[0] + _same_length(low[1:], "9" * rest))
        first += 1
    if high[1:].strip("9"):
        parts.append(high[0] + _same_length("0" * rest, high[1:]))
        last -= 1
    if first <= last:
        parts.append(f"[{first}-{last}]" + (f"[0-9]{{{rest}}}" if rest else ""))
    return parts[0] if len(parts) == 1 else f"({'|'.join(parts)})"
