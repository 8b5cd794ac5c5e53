"""Composes a scene: random numbers, framing, backdrop, shadow, reflection, car, camera."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from unet_batch.scenes import backdrop, camera, car
from unet_batch.scenes.backdrop import Road, Studio, View
from unet_batch.scenes.canvas import Canvas
from unet_batch.scenes.paint import draw_car
from unet_batch.scenes.shapes import blur, box, ellipse, resized

if TYPE_CHECKING:
    from unet_batch.scenes.shapes import Floats, Path
    from unet_batch.types import Pixels, Size

_BACKDROP_PIXELS = 2_600_000  # larger pictures get an enlarged backdrop: it is soft anyway
# A car is drawn about this wide at least, and then reduced: this is what smooths its edges
_CAR_PIXELS = 1300


@dataclass(frozen=True)
class Scene:
    """Everything that is random in a scene, independent of the picture's size.

    Attributes:
        car: the car.
        place: studio or road.
        lens: the camera.
        flip: the car faces left.
        share: width of the car, 0 small to 1 large.
        across, down: position in the room that is left, 0..1.
        eye: height of the camera in metres.
        distance: of the camera to the car, in metres.
        tilt: rotation of the car in degrees.
        nearer: how much larger the front is shown than the rear (perspective), -1..1 in units of a few per
            cent.
    """

    car: car.Car
    place: Studio | Road
    lens: camera.Lens
    flip: bool
    share: float
    across: float
    down: float
    eye: float
    distance: float
    tilt: float
    nearer: float


def plan(rng: np.random.Generator) -> Scene:
    """Draws the random numbers of one scene."""
    vehicle = car.roll(rng)
    studio = bool(rng.random() < 0.5)
    return Scene(
        car=vehicle,
        place=backdrop.roll_studio(rng) if studio else backdrop.roll_road(rng),
        lens=camera.roll(rng),
        flip=bool(rng.random() < 0.5),
        share=float(rng.random()),
        across=float(rng.random()),
        down=float(rng.random()),
        eye=float(rng.uniform(0.95, 1.5)),
        distance=float(rng.uniform(7, 11)),
        tilt=float(np.clip(rng.normal(0, 0.5), -1.6, 1.6)),
        nearer=float(rng.uniform(-1, 1)),
    )


def draw(seed: int, size: Size = (640, 960)) -> tuple[Pixels, Pixels]:
    """Draws a photo of a car.

    Args:
        seed: which scene; at least 0.
        size: (height, width) in pixels, each at least 64.

    Returns:
        The photo, RGB uint8 (height, width, 3), and the car's mask, uint8 (height, width): 255 where the car
        covers at least half of the pixel, else 0. Shadow and reflection do not belong to the car.
    """
    photo, cover = render(seed, size)
    return photo, np.where(cover >= 0.5, np.uint8(255), np.uint8(0))


def render(seed: int, size: Size, *, with_car: bool = True) -> tuple[Pixels, Floats]:
    """Draws scene `seed`.

    Args:
        with_car: False leaves the car out of the photo, but not its shadow and its reflection.

    Returns:
        The photo, RGB uint8 (height, width, 3), and the car's share of each pixel, float32 (height, width).
    """
    if min(size) < 64:
        raise ValueError(f"a scene of {size[0]}x{size[1]} pixels is too small: each side needs at least 64")
    dice, texture, sensor = (
        np.random.default_rng(stream) for stream in np.random.SeedSequence(seed).spawn(3)
    )
    scene = plan(dice)
    view, matrix = frame(scene, size)
    picture = scenery(scene, view, texture)
    colour, cover = car_layer(scene, size, matrix)
    shade(picture, scene, matrix, cover)
    reflect(picture, scene, matrix, colour, cover)
    if with_car:
        picture *= (1 - cover)[..., None]
        picture += colour
    return camera.develop(picture, scene.lens, sensor), cover


def frame(scene: Scene, size: Size) -> tuple[View, Path]:
    """Frames the scene.

    Returns:
        The view, and the matrix (3x3 float64, homogeneous) from the car's metres to the picture's pixels.
    """
    height, width = size
    length, tall = scene.car.length, scene.car.height + 0.1
    # As wide as the dice say, but no smaller than some 6 % of the picture and no higher than 62 % of it.
    least = max(0.42, np.sqrt(0.07 * height * length / (0.78 * width * tall)))
    most = min(0.76, 0.62 * height * length / (tall * width))
    share = (
        min(least + (0.76 - least) * scene.share, most)
        if least < most
        else most
        if most < 0.76
        else min(least, 0.92)
    )
    scale = share * width / length
    room = width - share * width
    centre = width / 2 + (scene.across - 0.5) * 0.7 * room
    lowest, highest = 0.88 * height, max(0.64 * height, tall * scale + 0.08 * height)
    ground = min(lowest, highest + (lowest - highest) * (0.15 + 0.6 * scene.down))
    view = View(size, scale, centre, ground, ground - scene.eye * scale, scene.distance)
    way = -1.0 if scene.flip else 1.0
    angle = np.deg2rad(scene.tilt)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    move = np.array([[1, 0, centre], [0, 1, ground], [0, 0, 1.0]])
    metres = np.array([[way * scale, 0, -way * scale * length / 2], [0, -scale, 0], [0, 0, 1]])
    lens = np.array([[1, 0, 0], [0, 1, 0], [scene.nearer * 0.045 / (share * width), 0, 1]])
    return view, move @ turn @ lens @ metres


def scenery(scene: Scene, view: View, rng: np.random.Generator) -> Floats:
    """The backdrop without anything on it, RGB float32 (h, w, 3), 0..1."""
    height, width = view.size
    factor = min(1.0, float(np.sqrt(_BACKDROP_PIXELS / (height * width))))
    if factor == 1.0:
        return scene.place.draw(view, rng)
    small = (round(height * factor), round(width * factor))
    return resized(scene.place.draw(view.resized(factor, small), rng), view.size)


def car_layer(scene: Scene, size: Size, matrix: Path, *, wheels: bool = True) -> tuple[Floats, Floats]:
    """Draws the car alone on the whole picture: premultiplied RGB (h, w, 3) and coverage (h, w), float32."""
    height, width = size
    length, tall = scene.car.length + 0.1, scene.car.height + 0.2
    corners = np.array([(-0.1, -0.1, 1), (length, -0.1, 1), (length, tall, 1), (-0.1, tall, 1)]) @ matrix.T
    corners = corners[:, :2] / corners[:, 2:]
    left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int) - 2, 0)
    right, bottom = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 2, (width, height))
    times = finer(int(right - left))
    zoom = np.array([[times, 0, -times * left], [0, times, -times * top], [0, 0, 1.0]])
    canvas = Canvas(((bottom - top) * times, (right - left) * times), zoom @ matrix)
    draw_car(canvas, scene.car, scene.place.light, wheels=wheels)
    colour = np.zeros((height, width, 3), np.float32)
    cover = np.zeros((height, width), np.float32)
    window, area = (bottom - top, right - left), (slice(top, bottom), slice(left, right))
    colour[area] = resized(canvas.colour, window, smaller=True) if times > 1 else canvas.colour
    cover[area] = resized(canvas.alpha, window, smaller=True) if times > 1 else canvas.alpha
    return colour, cover


def finer(width: int) -> int:
    """How many times finer a car `width` pixels wide is drawn than it is shown."""
    return int(np.clip(round(_CAR_PIXELS / width), 1, 4))


def shade(picture: Floats, scene: Scene, matrix: Path, cover: Floats) -> None:
    """Darkens the ground: deep under the tyres, softer below the body, and where the sun's shadow falls."""
    height, width = picture.shape[:2]
    step = max(1, width // 700)
    small = (height // step, width // step)
    canvas = Canvas(small, np.diag([1 / step, 1 / step, 1.0]) @ matrix)
    vehicle = scene.car
    road = isinstance(scene.place, Road)
    sun = scene.place.sun if isinstance(scene.place, Road) else 0.0
    light = np.ones(small, np.float32)
    length, radius = vehicle.length, vehicle.radius
    marks: list[tuple[Path, float, float]] = [
        (ellipse(length / 2, 0.0, length * 0.54, 0.10), 0.10, 0.42),
        (box(0.25, -0.035, length - 0.2, 0.2, 0.3), 0.05, 0.62 if road else 0.50),
        (ellipse(length / 2, -0.02, length * 0.60, 0.24), 0.22, 0.26),
    ]
    for axle in vehicle.axles:
        marks.append((ellipse(axle, 0.0, radius * 0.62, 0.030), 0.016, 0.75))
        marks.append((ellipse(axle, 0.0, radius * 1.05, 0.055), 0.05, 0.45))
    for path, softness, strength in marks:
        found = canvas.cover([path], softness)
        if found is not None:
            light[found[0]] *= 1 - np.float32(strength) * found[1]
    if sun and isinstance(scene.place, Road):
        lean = scene.place.lean * (-1 if scene.flip else 1)
        fall = np.array([[1, lean, 0], [0, -0.17, 0], [0, 0, 1.0]])
        sunless = _moved(cover, matrix, fall, step)
        sunless = blur(sunless, max(0.035 * canvas.pixels_per_metre, 0.3))
        light *= 1 - np.float32(0.52 * sun) * sunless
    picture *= resized(light, (height, width))[..., None]


def _moved(layer: Floats, matrix: Path, change: Path, step: int = 1) -> Floats:
    """A layer of the car, as it looks after `change` (3x3, in metres), reduced by `step`."""
    height, width = layer.shape[:2]
    small = (height // step, width // step)
    reduce = np.diag([1 / step, 1 / step, 1.0])
    source = resized(layer, small, smaller=True) if step > 1 else layer
    warp = reduce @ matrix @ change @ np.linalg.inv(reduce @ matrix)
    return cast("Floats", cv2.warpPerspective(source, warp, small[::-1], flags=cv2.INTER_LINEAR))


def reflect(picture: Floats, scene: Scene, matrix: Path, colour: Floats, cover: Floats) -> None:
    """Mirrors the car in the floor, fading with the distance from the tyres."""
    strength = scene.place.mirror if isinstance(scene.place, Studio) else scene.place.wet
    if strength < 0.01:
        return
    height, width = picture.shape[:2]
    step = max(1, width // 700)
    flip = np.diag([1.0, -1.0, 1.0])
    image, share = _moved(colour, matrix, flip, step), _moved(cover, matrix, flip, step)
    canvas = Canvas((height // step, width // step), np.diag([1 / step, 1 / step, 1.0]) @ matrix)
    sigma = max(0.03 * canvas.pixels_per_metre, 0.3)
    image, share = blur(image, sigma), blur(share, sigma)
    fade = (
        np.float32(strength)
        * np.clip(1 + canvas.y / np.float32(0.75 * scene.car.height), 0, 1)
        * (canvas.y < 0.02)
    )
    image *= fade[..., None]
    share *= fade
    picture *= 1 - resized(share, (height, width))[..., None]
    picture += resized(image, (height, width))
