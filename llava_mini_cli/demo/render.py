"""Scenes -> pixels, deterministic by seed, with varied shades, smoothing, noise and compression.

Knows nothing of truth or questions. Nuisances are drawn wide, so that JPEG and H.264 stay inside them.
"""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from llava_mini_cli.demo.scenes import RADIUS, Scene, Thing

RGB: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "green": (30, 165, 60),
    "blue": (35, 80, 225),
    "yellow": (245, 215, 30),
    "purple": (150, 50, 190),
    "orange": (250, 130, 20),
}
GREY_LEVEL = {"black": (0, 36), "grey": (108, 148), "white": (222, 256)}  # of backgrounds, half-open range


@dataclass(frozen=True)
class Look:
    """Everything about a picture that is not its truth; one look serves all frames of a video."""

    level: int  # grey level of the background
    tint: tuple[int, int, int]  # added to the background
    slope: tuple[float, float]  # grey levels of a linear gradient across the canvas, in x and y
    shade: int  # added to every colour of a thing
    noise: float  # standard deviation in grey levels
    supersample: int
    jpeg: int | None  # quality of one JPEG round trip


def random_look(rng: np.random.Generator, background: str) -> Look:
    """A look whose background is one of `scenes.BACKGROUNDS`."""
    tint = rng.integers(-6, 7, 3)
    slope = rng.uniform(-12, 12, 2)
    return Look(
        level=int(rng.integers(*GREY_LEVEL[background])),
        tint=(int(tint[0]), int(tint[1]), int(tint[2])),
        slope=(float(slope[0]), float(slope[1])),
        shade=int(rng.integers(-18, 19)),
        noise=float(rng.uniform(0, 7)) if rng.random() < 0.7 else 0.0,
        supersample=int(rng.integers(2, 4)),
        jpeg=int(rng.integers(55, 96)) if rng.random() < 0.3 else None,
    )


def outline(thing: Thing, edge: float) -> list[tuple[float, float]]:
    """Corners of a square, triangle or cross in pixels of a canvas of that edge."""
    cx, cy, r = thing.x * edge, thing.y * edge, RADIUS[thing.size] * edge
    if thing.shape == "square":
        s = r * 0.86
        return [(cx - s, cy - s), (cx + s, cy - s), (cx + s, cy + s), (cx - s, cy + s)]
    if thing.shape == "triangle":
        return [(cx, cy - r), (cx + r, cy + r * 0.85), (cx - r, cy + r * 0.85)]
    a = r * 0.34  # half the width of the cross's arms
    corners = [
        (-a, -r),
        (a, -r),
        (a, -a),
        (r, -a),
        (r, a),
        (a, a),
        (a, r),
        (-a, r),
        (-a, a),
        (-r, a),
        (-r, -a),
        (-a, -a),
    ]
    return [(cx + x, cy + y) for x, y in corners]


def draw(thing: Thing, pen: ImageDraw.ImageDraw, edge: float, shade: int) -> None:
    """Draws one filled thing."""
    red, green, blue = (min(max(c + shade, 0), 255) for c in RGB[thing.colour])
    fill = (red, green, blue)
    if thing.shape == "circle":
        cx, cy, r = thing.x * edge, thing.y * edge, RADIUS[thing.size] * edge * 0.97
        pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=fill)
    else:
        pen.polygon(outline(thing, edge), fill=fill)


def backdrop(look: Look, edge: int) -> NDArray[np.uint8]:
    """uint8 `[edge, edge, 3]` background."""
    ramp = np.linspace(-0.5, 0.5, edge, dtype=np.float32)
    grey = look.level + look.slope[0] * ramp[None, :] + look.slope[1] * ramp[:, None]
    canvas = grey[:, :, None] + np.array(look.tint, dtype=np.float32)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def render(scene: Scene, look: Look, edge: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Pixels of a scene: uint8 `[edge, edge, 3]` RGB. `rng` only draws the noise."""
    large = edge * look.supersample
    image = Image.fromarray(backdrop(look, edge)).resize((large, large), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(image)
    for thing in scene.things:
        draw(thing, pen, large, look.shade)
    image = image.reduce(look.supersample)
    if look.noise:
        grain = rng.normal(0, look.noise, (edge, edge, 3)).astype(np.float32)
        image = Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
    return np.array(compressed(image, look.jpeg))


def compressed(image: Image.Image, quality: int | None) -> Image.Image:
    """The image after a JPEG round trip at that quality, or as it is for None."""
    if quality is None:
        return image
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)
