"""Prompt layouts: a question to token ids, and generated ids back to text. No torch.

Two families, told apart by the tokenizer: Llama 3.1's chat template, and Vicuna v1. Each has two layouts:

* `trained` (default): what the model was trained on; one BOS, and the assistant's header at the end.
* `reference`: the ids of the reference's own script, for parity; with Llama 3.1 that is two BOS and no
  assistant header (the model has to write the header itself).
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from llava_mini_cli.config import PromptLayout
from llava_mini_cli.errors import PromptError, UsageError, first_line, is_fault

Family = Literal["llama3", "vicuna"]

IMAGE_TOKEN_ID = -200  # stands for the frames in a prompt's ids
IMAGE = "<image>"  # stands for the frames in a prompt's text
PLACEHOLDER = "<image-placeholder>"  # what a user writes to put the frames elsewhere than first
LLAMA_3_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language."
)
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
HEADER_START, HEADER_END = "<|start_header_id|>", "<|end_header_id|>"
HEADER = f"{HEADER_START}assistant{HEADER_END}\n\n"
_MOST_SHOWN = 40  # characters of an answer in a message


@contextmanager
def _as_the_prompts_error(what: str) -> Generator[None]:
    """Turns whatever a tokenizer's files make its library raise, panics included, into an error of the one prompt."""
    try:
        yield
    except PromptError:
        raise
    except BaseException as error:
        if is_fault(error):
            raise PromptError("bad_prompt", f"the model's {what} fails at it: {first_line(error)}") from error
        raise


@dataclass(frozen=True)
class PromptBuilder:
    """Turns questions into ids and ids into answers, for one tokenizer."""

    tokenizer: Any  # a transformers tokenizer
    layout: PromptLayout = "trained"
    image_start_end: bool = False  # the checkpoint's mm_use_im_start_end
    vocabulary: int | None = None  # tokens that the model has; None: all of the tokenizer's

    def __post_init__(self) -> None:
        if self.layout not in get_args(PromptLayout):
            raise UsageError(f"--prompt-layout must be one of {', '.join(get_args(PromptLayout))}, not {self.layout}")

    @property
    def family(self) -> Family:
        """`llama3` when the tokenizer knows Llama 3's header tokens, else `vicuna`."""
        return "llama3" if HEADER_START in self.tokenizer.get_vocab() else "vicuna"

    def question_ids(self, question: str) -> list[int]:
        """The whole prompt's ids for a user's question, `IMAGE_TOKEN_ID` where the frames go.

        Raises:
            PromptError: the question is empty or holds the text `<image>`, or the tokenizer fails at it.
        """
        if not question.strip():
            raise PromptError("empty_prompt", "the prompt is empty")
        if IMAGE in question:
            raise PromptError("bad_prompt", f"the prompt holds {IMAGE}; write {PLACEHOLDER} to place the frames")
        prompt = self.prompt_text(question)
        if prompt.count(IMAGE) != 1:
            raise PromptError("bad_prompt", f"the prompt holds {PLACEHOLDER} more than once")
        with _as_the_prompts_error("tokenizer"):
            ids = self.prompt_ids(prompt)
        if self.vocabulary is not None and max(ids) >= self.vocabulary:
            raise PromptError("bad_prompt", f"the prompt holds token {max(ids)}, which the model does not have")
        return ids

    def prompt_text(self, question: str) -> str:
        """The prompt as text, with `<image>` in it; Llama 3's begins with the template's own BOS."""
        image = f"<im_start>{IMAGE}<im_end>" if self.image_start_end else IMAGE
        return self._laid_out(
            question.replace(PLACEHOLDER, image) if PLACEHOLDER in question else f"{image}\n{question}"
        )

    def text_ids(self, question: str) -> list[int]:
        """The whole prompt's ids for the same question about no medium. Raises `PromptError`."""
        prompt = self._laid_out(question.replace(PLACEHOLDER, ""))
        with _as_the_prompts_error("tokenizer"):
            return self.prompt_ids(prompt)

    def _laid_out(self, message: str) -> str:
        if self.family == "vicuna":
            return f"{VICUNA_SYSTEM} USER: {message} ASSISTANT:"
        turns = [{"role": "system", "content": LLAMA_3_SYSTEM}, {"role": "user", "content": message}]
        with _as_the_prompts_error("chat template"):
            return self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=self.layout == "trained"
            )

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids of a complete prompt text, the placeholder for each `<image>`.

        Each stretch between placeholders is tokenised by itself. The `reference` layout keeps both the
        tokenizer's BOS and the one in the text.
        """
        ids: list[int] = []
        for number, stretch in enumerate(prompt.split(IMAGE)):
            if number:
                ids.append(IMAGE_TOKEN_ID)
            ids += self._tokenise(stretch, first=number == 0)
        return ids

    def _tokenise(self, text: str, first: bool) -> list[int]:
        bos = self.tokenizer.bos_token_id
        pieces = self._sentencepiece() if text.startswith(" ") else None
        ids: list[int] = list(self.tokenizer(text).input_ids) if pieces is None else [bos, *pieces.encode(text)]
        if bos is None or not ids or ids[0] != bos:
            return ids
        if not first:
            return ids[1:]
        doubled = len(ids) > 1 and ids[1] == bos
        return ids[1:] if doubled and self.layout == "trained" else ids

    def _sentencepiece(self) -> Any:
        """The tokenizer's own sentencepiece model, if it has one.

        It keeps a stretch's leading space behind the one that it puts in front of every text, as the reference
        does; transformers 5 merges the two.
        """
        path = str(getattr(self.tokenizer, "vocab_file", None) or "")
        if not path.endswith(".model"):
            return None
        from sentencepiece import SentencePieceProcessor

        return cast(Any, SentencePieceProcessor)(model_file=path)

    def header_ids(self) -> list[int]:
        """The ids that the model writes before it answers: Llama 3's header in the reference layout, else none."""
        if self.family == "llama3" and self.layout == "reference":
            return list(self.tokenizer(HEADER, add_special_tokens=False).input_ids)
        return []

    def answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        """The ids of each answer as the model was trained to write it, without header and end.

        An answer is tokenised behind the end of a prompt, and so with the space that is before it in Vicuna's layout.

        Raises:
            PromptError: an answer holds nothing, or special tokens, or tokens that the model does not have.
        """
        before, gap = (HEADER, "") if self.family == "llama3" else ("ASSISTANT:", " ")
        with _as_the_prompts_error("tokenizer"):
            texts = [before, *(f"{before}{gap}{answer}" for answer in answers)]
            start, *found = cast("list[list[int]]", self.tokenizer(texts, add_special_tokens=False).input_ids)
        special = {*self.tokenizer.all_special_ids}
        special |= {number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        for answer, ids in zip(answers, found, strict=True):
            own = ids[len(start) :]
            wrong = [one for one in own if one in special or (self.vocabulary is not None and one >= self.vocabulary)]
            if not answer.strip() or not own or ids[: len(start)] != start:
                raise PromptError("bad_prompt", f"the choice '{_short(answer)}' is no text of its own to the model")
            if wrong:
                raise PromptError(
                    "bad_prompt", f"the choice '{_short(answer)}' holds token {wrong[0]}, as no answer does"
                )
        return [ids[len(start) :] for ids in found]

    def answer_text(self, ids: list[int]) -> str:
        """Generated ids as the user reads them: no special tokens, no assistant header, stripped."""
        text = self.tokenizer.decode(self._without_header(ids), skip_special_tokens=True)
        # The tokenizer's own setting; transformers 5 no longer acts on it for byte-pair encodings by itself.
        tidy = self.family == "llama3" and self.tokenizer.clean_up_tokenization_spaces
        return (self.tokenizer.clean_up_tokenization(text) if tidy else text).strip()

    def _without_header(self, ids: list[int]) -> list[int]:
        """Drops `<|start_header_id|>assistant<|end_header_id|>`, which the reference layout lets the model write."""
        if self.family != "llama3" or not ids:
            return ids
        start, end = (self.tokenizer.convert_tokens_to_ids(token) for token in (HEADER_START, HEADER_END))
        return ids[ids.index(end) + 1 :] if ids[0] == start and end in ids else ids


def _short(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
