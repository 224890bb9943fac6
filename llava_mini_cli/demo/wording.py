"""How questions are worded. The held-out wordings use known words in sentences that training never shows.

Knows nothing of scenes: templates with {ref}, {other}, {thing}, {colour}, {shape}, {place}, {relation},
{which} or {direction}.
"""

import numpy as np

from llava_mini_cli.demo.scenes import Split

TRAIN: dict[str, tuple[str, ...]] = {
    "colour": (
        "What colour is {ref}?",
        "What color is {ref}?",
        "Which colour is {ref}?",
        "Which colour does {ref} have?",
        "What is the colour of {ref}?",
        "Tell me the colour of {ref}.",
        "Name the colour of {ref}.",
    ),
    "shape": (
        "What shape is {ref}?",
        "Which shape is {ref}?",
        "What is the shape of {ref}?",
        "Which shape does {ref} have?",
        "Tell me the shape of {ref}.",
        "Name the shape of {ref}.",
    ),
    "size": (
        "Is {ref} small or large?",
        "Is {ref} large or small?",
        "What size is {ref}?",
        "What is the size of {ref}?",
        "Tell me the size of {ref}.",
        "Which size does {ref} have?",
    ),
    "place": (
        "Where is {ref}?",
        "Where is {ref} in the picture?",
        "In which place is {ref}?",
        "What is the place of {ref}?",
        "Tell me where {ref} is.",
        "Name the place of {ref}.",
    ),
    "count": (
        "How many {group} are there?",
        "How many {group} do you see?",
        "How many {group} are in the picture?",
        "Count the {group}.",
        "What is the number of {group}?",
        "Tell me the number of {group}.",
        "Tell me how many {group} there are.",
    ),
    "relation_x": (
        "Is {ref} left or right of {other}?",
        "Is {ref} right or left of {other}?",
        "Is {ref} on the left or on the right of {other}?",
        "On which side of {other} is {ref}, left or right?",
        "Tell me if {ref} is left or right of {other}.",
    ),
    "relation_y": (
        "Is {ref} above or below {other}?",
        "Is {ref} below or above {other}?",
        "Tell me if {ref} is above or below {other}.",
        "Where is {ref}, above or below {other}?",
        "Where is {ref}, below or above {other}?",
    ),
    "places": (
        "Where is {ref} and where is {other}?",
        "Where are {ref} and {other}?",
        "Tell me where {ref} and {other} are.",
        "Name the place of {ref} and the place of {other}.",
    ),
    "background": (
        "What colour is the background?",
        "What color is the background?",
        "Which colour does the background have?",
        "What is the colour of the background?",
        "Name the background colour.",
    ),
    "exists": (
        "Is there a {thing}?",
        "Is there a {thing} in the picture?",
        "Do you see a {thing}?",
        "Is a {thing} in the picture?",
        "Does the picture show a {thing}?",
        "Tell me if there is a {thing}.",
    ),
    "is_colour": ("Is {ref} {colour}?", "Is the colour of {ref} {colour}?", "Does {ref} have the colour {colour}?"),
    "is_related": (
        "Is {ref} {relation} {other}?",
        "Tell me if {ref} is {relation} {other}.",
        "Do you see {ref} {relation} {other}?",
    ),
    "json": (
        "Describe {ref} as JSON.",
        "Give {ref} as JSON.",
        "What is {ref}? Answer as JSON.",
        "Name the shape, colour and size of {ref} as JSON.",
        "Show {ref} as JSON.",
    ),
    "caption": (
        "Describe the image.",
        "Describe the picture.",
        "Describe this image.",
        "What does the picture show?",
        "What is in the picture?",
        "What do you see?",
        "Describe what you see.",
        "Caption this image.",
    ),
    "direction": (
        "Which way does {ref} move?",
        "In which direction does {ref} move?",
        "Where does {ref} move?",
        "What is the direction of {ref}?",
        "Tell me the direction of {ref}.",
        "Which direction does {ref} go?",
    ),
    "endpoint": (
        "Where is {ref} {which}?",
        "In which place is {ref} {which}?",
        "What is the {which} place of {ref}?",
        "Tell me the {which} place of {ref}.",
    ),
    "first": (
        "What appears first?",
        "Which shape appears first?",
        "What comes first?",
        "Name the first shape that appears.",
    ),
    "second": (
        "What appears second?",
        "Which shape appears second?",
        "What comes second?",
        "Name the second shape that appears.",
    ),
    "last": (
        "What appears last?",
        "Which shape appears last?",
        "What comes last?",
        "Name the last shape that appears.",
    ),
    "before": (
        "Which comes first, {ref} or {other}?",
        "What appears first, {ref} or {other}?",
        "Does {ref} or {other} come first?",
        "Does {ref} or {other} appear first?",
    ),
    "next": (
        "What comes after {ref}?",
        "What appears after {ref}?",
        "Which shape comes after {ref}?",
        "Tell me what comes after {ref}.",
    ),
    "rank": (
        "Does {ref} come first, second or last?",
        "Does {ref} appear first, second or last?",
        "Is {ref} first, second or last?",
        "Tell me if {ref} appears first, second or last.",
    ),
    "path": (
        "Describe where {ref} moves.",
        "Describe where {ref} goes.",
        "Tell me where {ref} is first, then where it goes.",
    ),
    "places_shown": (
        "Describe where the shapes appear.",
        "Where do the shapes appear?",
        "Tell me where the shapes appear.",
    ),
    "count_shown": (
        "How many shapes appear in the video?",
        "How many shapes appear?",
        "How many shapes come one after another?",
        "Count the shapes that appear.",
        "Tell me how many shapes appear.",
    ),
    "count_blinks": (
        "How many times does {ref} appear?",
        "How often does {ref} appear?",
        "How many times do you see {ref} appear?",
        "Count how many times {ref} appears.",
        "Tell me how many times {ref} appears.",
    ),
    "appears": (
        "What appears?",
        "What comes into the video?",
        "Which shape appears?",
        "Tell me what appears.",
        "Which shape comes in?",
    ),
    "vanishes": (
        "What disappears?",
        "Which shape disappears?",
        "What goes away?",
        "Tell me what disappears.",
        "Which shape goes away?",
    ),
    "brief": (
        "What appears for a moment?",
        "What appears briefly?",
        "Which shape appears for a moment?",
        "What is seen only briefly?",
        "What comes only for a moment?",
        "Tell me what appears briefly.",
    ),
    "moving": (
        "What moves?",
        "Which shape moves?",
        "What is moving?",
        "Tell me what moves.",
        "Name the shape that moves.",
    ),
    "does_move": ("Does {ref} move {direction}?", "Is {ref} moving {direction}?", "Does {ref} go {direction}?"),
    "does_appear": (
        "Does a {thing} appear?",
        "Does a {thing} appear in the video?",
        "Do you see a {thing} in the video?",
        "Is there a {thing} in the video?",
        "Does the video show a {thing}?",
    ),
    "video_caption": (
        "Describe the video.",
        "Describe this video.",
        "What happens?",
        "What happens in the video?",
        "Describe what happens.",
        "Caption this video.",
    ),
}

HELD_OUT: dict[str, tuple[str, ...]] = {
    "colour": ("{ref} has which colour?", "Name the color of {ref}.", "Tell me which colour {ref} is."),
    "shape": ("{ref} has which shape?", "Tell me which shape {ref} is.", "Name which shape {ref} is."),
    "size": ("Tell me if {ref} is small or large.", "{ref} is large or small?", "Name the size of {ref}."),
    "place": ("Tell me the place of {ref}.", "Name where {ref} is.", "Where do you see {ref}?"),
    "count": ("Count how many {group} there are.", "Tell me how many {group} you see.", "Name the number of {group}."),
    "relation_x": ("Is {ref} to the left or to the right of {other}?", "{ref} is left or right of {other}?"),
    "relation_y": ("{ref} is above or below {other}?", "Do you see {ref} above or below {other}?"),
    "places": ("Tell me the place of {ref} and of {other}.", "In which place is {ref} and in which place {other}?"),
    "background": (
        "Tell me the colour of the background.",
        "The background has which colour?",
        "Name the colour of the background.",
    ),
    "exists": (
        "Do you see a {thing} in the picture?",
        "Is there a {thing} that you see?",
        "Tell me if you see a {thing}.",
    ),
    "is_colour": ("Tell me if {ref} is {colour}.", "Is {colour} the colour of {ref}?"),
    "is_related": ("{ref} is {relation} {other}?", "Is {ref} in a place {relation} {other}?"),
    "json": ("Tell me the shape, colour and size of {ref} as JSON.", "Name {ref} as JSON."),
    "caption": ("Describe what the picture shows.", "Tell me what you see.", "What is in this image?"),
    "direction": ("{ref} moves in which direction?", "Tell me which way {ref} moves.", "Which way does {ref} go?"),
    "endpoint": ("Name the {which} place of {ref}.", "Tell me where {ref} is {which}."),
    "first": ("Tell me which shape appears first.", "Which shape comes first?"),
    "second": ("Tell me which shape appears second.", "Which shape comes second?"),
    "last": ("Tell me which shape appears last.", "Which shape comes last?"),
    "before": ("Tell me which comes first, {ref} or {other}.", "Which appears first, {ref} or {other}?"),
    "next": ("Tell me which shape comes after {ref}.", "Which shape appears after {ref}?"),
    "rank": ("Which is {ref}, first, second or last?", "Tell me if {ref} comes first, second or last."),
    "path": ("Tell me where {ref} moves.", "In which places is {ref}?"),
    "places_shown": ("Describe where shapes appear.", "In which places do the shapes appear?"),
    "count_shown": ("Count how many shapes appear.", "How many shapes do you see appear?"),
    "count_blinks": ("How many times does {ref} appear in the video?", "Tell me how often {ref} appears."),
    "appears": ("Name the shape that appears.", "What appears in the video?", "Tell me which shape appears."),
    "vanishes": ("Name the shape that disappears.", "Tell me which shape goes away."),
    "brief": (
        "Name the shape that appears briefly.",
        "Tell me what comes only for a moment.",
        "What is seen for a moment?",
    ),
    "moving": ("Tell me which shape moves.", "Which shape is moving?"),
    "does_move": ("Tell me if {ref} moves {direction}.", "Is the direction of {ref} {direction}?"),
    "does_appear": ("Tell me if a {thing} appears.", "Do you see a {thing} appear?"),
    "video_caption": ("Tell me what happens.", "Describe what the video shows.", "What does this video show?"),
}

BEFORE = {  # said before a question; most have nothing before or after them
    "train": ("Look at the picture. ", "Look carefully. ", "In the picture: ", "Please answer: "),
    "heldout": ("Look at the image. ", "Please look carefully. "),
}
AFTER = {
    "train": (" Answer briefly.", " Please answer.", " Answer in one word.", " Be brief."),
    "heldout": (" Please be brief.", " Answer in a word."),
}
DECORATED = 0.25  # share of questions with something before or after them
LONG_ANSWERS = frozenset({"json", "caption", "video_caption"})  # never asked to be brief


def worded(rng: np.random.Generator, split: Split, kind: str, **slots: str) -> str:
    """One question of a kind in a wording of the split, its slots filled."""
    own = "heldout" if split == "heldout" else "train"
    templates = (HELD_OUT if own == "heldout" else TRAIN)[kind]
    text = templates[int(rng.integers(len(templates)))].format(**slots)
    text = text[0].upper() + text[1:]
    if kind in LONG_ANSWERS or rng.random() >= DECORATED:
        return text
    if rng.random() < 0.5:
        before = BEFORE[own][int(rng.integers(len(BEFORE[own])))]
        return before + (text[0].lower() + text[1:] if before.endswith(": ") else text)
    return text + AFTER[own][int(rng.integers(len(AFTER[own])))]
