"""Grammars tried by llguidance in a process of its own, with bounds on time, memory and depth.

A schema of a stranger may never be compiled, or overflow the stack, which no process outlives. Run as a script with
JSON on standard input, a list of grammars as llguidance reads them, it says a line for each: "" or why it is refused.
Imports nothing of the package but its bounds.
"""

import json
import sys
import threading
from typing import Any

from llava_mini_cli.trial_process import bound

CPU_SECONDS = 10  # hundreds of times what a grammar of a thousand fields takes
STACK_BYTES = 1 << 20  # the process that writes answers has several times that
STEPS = 64  # bytes of an answer that is tried
MOST_STATES = 50_000  # of one grammar's lexer, about 1.5 kB each


def limits(library: Any) -> Any:
    """What llguidance may spend on one grammar and one step."""
    return library.LLParserLimits(max_lexer_states=MOST_STATES, verbose_errors=False)


def refusal(library: Any, tokenizer: Any, grammar: str) -> str:
    """Why a grammar cannot be used, or ""; found by compiling it and by writing the beginning of an answer."""
    matcher = library.LLMatcher(tokenizer, grammar, log_level=0, limits=limits(library))
    for _ in range(STEPS):
        if matcher.is_error() or matcher.is_stopped():
            break
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        if mask:
            matcher.consume_token((mask & -mask).bit_length() - 1)  # the least of those that may come
    return matcher.get_error()


def main() -> None:
    """Tries the grammars of standard input, one after the other."""
    bound(CPU_SECONDS)
    grammars: list[str] = json.loads(sys.stdin.read())
    import llguidance

    def try_all() -> None:
        tokenizer = llguidance.LLTokenizer("byte")
        for grammar in grammars:
            try:
                words = refusal(llguidance, tokenizer, grammar)
            except BaseException as error:  # noqa: BLE001 - a panic of llguidance is no Exception
                words = str(error) or type(error).__name__
            sys.stdout.write(json.dumps(words) + "\n")
            sys.stdout.flush()

    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=try_all)
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
