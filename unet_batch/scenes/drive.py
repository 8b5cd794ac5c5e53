"""Drawn cars that drive past, frame after frame, with exact masks and the sound they make.

Time is cut into shots of equal length; each shows another car (sometimes two) before another road, from the
moment it enters the picture to the moment it has left. What a frame shows depends on the seed, the size and
the frame's time, and on nothing
else: any frame can be drawn alone, and a longer clip continues a shorter one.

All that never changes within a shot is drawn once: the empty road, what a car does to the ground, its body,
and its wheel in each position. A frame lays these over each other, moved by fractions of a pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from unet_batch.scenes import backdrop, camera, car
from unet_batch.scenes.canvas import Canvas
from unet_batch.scenes.compose import Scene, car_layer, finer, frame, plan, reflect, scenery, shade
from unet_batch.scenes.shapes import blur, resized
from unet_batch.scenes.wheel import draw_wheel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.scenes.shapes import Floats, Path
    from unet_batch.types import Pixels, Size

SHOT_SECONDS = Fraction(6)

_LEAST = 16  # pixels of the shorter side: below, not even a car's colour is left
_GREY = 0.8  # leaves the camera room to brighten it
_AROUND = 1.8  # metres before and behind a car that its shadow may reach
_TURNS = 24  # positions of a wheel between one spoke and the next at most; more could not be told apart
_CUT = 0.02  # seconds over which sound fades at the ends of a shot


def drive(
    seed: int,
    size: Size,
    frames: int,
    rate: Fraction,
    *,
    start: int = 0,
    shot_seconds: Fraction = SHOT_SECONDS,
) -> Iterator[tuple[Pixels, Pixels]]:
    """Draws a clip of cars that drive past.

    Args:
        seed: which clip; at least 0.
        size: (height, width) in pixels, each at least 16.
        frames: how many frames to draw.
        rate: frames per second.
        start: the first frame to draw: `drive(s, z, 9, r, start=1)` continues `drive(s, z, 1, r)`.
        shot_seconds: how long a car takes from one side to the other; then the picture cuts to the next.

    Yields:
        The frame, RGB uint8 (height, width, 3), and the mask of the cars, uint8 (height, width): 255 where
        they cover at least half of the pixel, else 0; empty while they are outside. Both are new arrays.

    Raises:
        ValueError: the size, a time or a number is out of range.
    """
    if min(size) < _LEAST:
        raise ValueError(
            f"a clip of {size[0]}x{size[1]} pixels is too small: each side needs at least {_LEAST}"
        )
    if seed < 0 or frames < 0 or start < 0:
        raise ValueError(
            f"a clip cannot have seed {seed}, {frames} frames and start at frame {start}: none may be "
            f"negative"
        )
    if rate <= 0 or shot_seconds <= 0:
        raise ValueError(
            f"a clip of {rate} frames per second in shots of {shot_seconds} s cannot be drawn: both must be "
            f"positive"
        )
    return _frames(seed, size, range(start, start + frames), rate, shot_seconds)


def sound(
    seed: int, seconds: Fraction | float, sample_rate: int = 48_000, *, shot_seconds: Fraction = SHOT_SECONDS
) -> NDArray[np.int16]:
    """Makes the sound of a clip: engines that come, pass and go, in stereo, as `drive` shows them.

    Args:
        seed: which clip; at least 0.
        seconds: how long.
        sample_rate: samples per second.
        shot_seconds: as for `drive`.

    Returns:
        Left and right, int16 (samples, 2). A longer sound continues a shorter one.

    Raises:
        ValueError: a time or a number is out of range.
    """
    if seed < 0 or seconds < 0 or sample_rate <= 0 or shot_seconds <= 0:
        raise ValueError(
            f"sound of {float(seconds):g} s in shots of {shot_seconds} s at {sample_rate} samples per "
            f"second, seed {seed}: "
            "shots and rate must be positive, the others not negative"
        )
    total = round(Fraction(seconds) * sample_rate)
    both = np.empty((total, 2), np.int16)
    index = begin = 0
    while begin < total:
        end = ceil((index + 1) * shot_seconds * sample_rate)
        both[begin:end] = _pass(_plan(seed, index), end - begin, sample_rate)[: total - begin]
        index, begin = index + 1, end
    return both


def _pass(shot: _Plan, samples: int, rate: int) -> NDArray[np.int16]:
    """The sound of one shot, int16 (samples, 2)."""
    dice = np.random.default_rng(shot.rumble)
    progress = (np.arange(samples) + 0.5) / samples
    away = 6 * (progress - 0.5)  # distance along the road, in units of the distance from road to camera
    note = 2 * np.pi * np.cumsum(shot.engine * (1 - 0.04 * np.tanh(away))) / rate  # lower once it has passed
    strength = dice.uniform(0.4, 1.0, 14) / np.arange(1, 15) ** 0.9
    tone = sum(
        a * np.sin(k * note + turn)
        for k, (a, turn) in enumerate(zip(strength, dice.uniform(0, 6.3, 14), strict=True), 1)
    )
    # Of the tyres
    hiss = np.convolve(dice.standard_normal(samples + 15), np.hanning(18)[1:-1] / 3, mode="valid")
    heard = np.clip(0.7 * tone / strength.sum() + 0.12 * hiss, -1, 1) / (1 + away**2)
    # No click at the cut
    heard *= np.clip(np.minimum(progress, 1 - progress) * samples / (_CUT * rate), 0, 1)
    side = (progress if shot.way > 0 else 1 - progress) * np.pi / 2
    both = np.stack([np.cos(side), np.sin(side)], axis=1) * heard[:, None]
    return np.asarray(np.rint(both * 32_000), dtype=np.int16)


def _frames(
    seed: int, size: Size, numbers: range, rate: Fraction, shot_seconds: Fraction
) -> Iterator[tuple[Pixels, Pixels]]:
    shot: Shot | None = None
    for number in numbers:
        index, progress = _when(number / rate, shot_seconds)
        if shot is None or shot.index != index:
            shot = None  # it gives its memory back before the next one asks for as much
            shot = Shot(seed, index, size)
        yield shot.draw(progress, number)


def _when(seconds: Fraction, shot_seconds: Fraction) -> tuple[int, float]:
    """The shot that runs at a time, and how much of it has passed, 0..1."""
    index, rest = divmod(seconds, shot_seconds)
    return int(index), float(rest / shot_seconds)


@dataclass(frozen=True)
class _Plan:
    """What is random in a shot.

    Attributes:
        scene: the place, the camera and the car in front.
        cars: all cars, and how far the middle of each is behind the middle of the first, in metres.
        sway: phases of the body's two movements on its springs.
        engine: frequency of the lowest note of the engine, in Hz.
        texture, sensor, rumble: seeds of the backdrop, of the camera and of the sound.
    """

    scene: Scene
    cars: tuple[tuple[car.Car, float], ...]
    sway: tuple[float, float]
    engine: float
    texture: np.random.SeedSequence
    sensor: np.random.SeedSequence
    rumble: np.random.SeedSequence

    @property
    def way(self) -> int:
        """1 for a drive from left to right, -1 from right to left."""
        return -1 if self.scene.flip else 1


def _plan(seed: int, index: int) -> _Plan:
    """Draws the random numbers of shot `index` of clip `seed`."""
    root, texture, sensor, rumble = np.random.SeedSequence((seed, index)).spawn(4)
    dice = np.random.default_rng(root)
    # Cars drive on roads, straight past the camera, which sees neither end of them nearer than the other.
    scene = replace(plan(dice), place=backdrop.roll_road(dice), across=0.5, tilt=0.0, nearer=0.0)
    cars = [(scene.car, 0.0)]
    if dice.random() < 0.3:
        second = car.roll(dice)
        cars.append((second, (scene.car.length + second.length) / 2 + float(dice.uniform(0.9, 2.2))))
    sway = dice.uniform(0, 2 * np.pi, 2)
    return _Plan(
        scene,
        tuple(cars),
        (float(sway[0]), float(sway[1])),
        float(dice.uniform(38, 62)),
        texture,
        sensor,
        rumble,
    )


@dataclass(frozen=True)
class _Layer:
    """A part of a moving car.

    Attributes:
        colour: its light, RGB uint8 (h, w, 3), premultiplied, before the camera's uneven gain.
        keep: what shows through of what is behind it, uint8 (h, w, 3), softened by the lens.
        clear: the same, sharp, uint8 (h, w): what the mask is made of. None where the layer is no part of the
            car.
        left, top: where the first pixel lies, in pixels from the middle of the car on the ground.
    """

    colour: Pixels
    keep: Pixels
    clear: Pixels | None
    left: float
    top: float


class _Car:
    """A car in layers, ready to be put anywhere along its way."""

    def __init__(self, scene: Scene, view: backdrop.View, behind: float, sigma: float) -> None:
        """Draws the layers of a car.

        Args:
            scene: with this car in it.
            view: where the camera stands.
            behind: how far the car is behind the first, in metres.
            sigma: standard deviation of the lens's blur in pixels.
        """
        self.car = scene.car
        self.behind = behind
        self._scene = scene
        self._sigma = sigma
        self._scale = view.scale
        self._way = -1 if scene.flip else 1
        length, tall = scene.car.length, scene.car.height
        self.period = 2 * np.pi / scene.car.spokes
        rim = scene.car.radius * self._scale
        self._turns = int(np.clip(np.ceil(self.period * rim), 1, _TURNS))
        self._wheels: dict[int, _Layer] = {}

        size, matrix = self._box(length / 2, length / 2 + _AROUND, 0.9 * tall + 0.2, tall + 0.5)
        colour, cover = car_layer(scene, size, matrix)
        # Shadow and reflection change the picture by a factor and a summand: known once two pictures went
        # through them.
        black, white = np.zeros((*size, 3), np.float32), np.ones((*size, 3), np.float32)
        shade(white, scene, matrix, cover)
        for picture in (black, white):
            reflect(picture, scene, matrix, colour, cover)
        corner = -size[1] / 2, -(tall + 0.5) * self._scale
        self.ground = _cropped(_Layer(_bytes(black), _bytes(white - black), None, *corner))
        self.body = self._layer(*car_layer(scene, size, matrix, wheels=False), *corner)

    def _box(self, middle: float, reach: float, low: float, high: float) -> tuple[Size, Path]:
        """Size and matrix of a canvas of x within `reach` of `middle`, y from -`low` to `high` (metres)."""
        size = int(np.ceil((low + high) * self._scale)), int(np.ceil(2 * reach * self._scale))
        across = self._way * self._scale
        return size, np.array(
            [[across, 0, size[1] / 2 - across * middle], [0, -self._scale, high * self._scale], [0, 0, 1.0]]
        )

    def _layer(self, colour: Floats, cover: Floats, left: float, top: float) -> _Layer:
        clear = _bytes(1 - cover)
        if self._sigma:
            colour, cover = blur(colour, self._sigma), blur(cover, self._sigma)
        keep = np.repeat(_bytes(1 - cover)[..., None], 3, axis=2)
        return _cropped(_Layer(_bytes(colour), keep, clear, left, top))

    def wheel(self, angle: float) -> _Layer:
        """A wheel turned by `angle` (radians), as if its axle were in the middle of the car."""
        turn = round(angle / self.period * self._turns) % self._turns
        if turn not in self._wheels:
            vehicle, radius = self.car, self.car.radius
            size, matrix = self._box(
                0, 1.1 * radius + 4 * self._sigma / self._scale, 0.1 * radius, 2.1 * radius
            )
            times = finer(int(vehicle.length * self._scale))
            canvas = Canvas((size[0] * times, size[1] * times), np.diag([times, times, 1.0]) @ matrix)
            draw_wheel(canvas, vehicle, self._scene.place.light, 0.0, turn * self.period / self._turns)
            colour, cover = (
                resized(canvas.colour, size, smaller=True),
                resized(canvas.alpha, size, smaller=True),
            )
            self._wheels[turn] = self._layer(colour, cover, -size[1] / 2, -2.1 * radius * self._scale)
        return self._wheels[turn]


def _bytes(light: Floats) -> Pixels:
    """Converts 0..1 to uint8, 0..255."""
    return np.asarray(np.rint(np.clip(light, 0, 1) * 255), dtype=np.uint8)


def _cropped(layer: _Layer) -> _Layer:
    """The part of a layer that shows, with a pixel of nothing around it."""
    shows = layer.keep[..., 0] < 255
    if layer.clear is not None:
        shows |= layer.clear < 255
    x, y, width, height = cv2.boundingRect(shows.astype(np.uint8))
    area = slice(y, y + height), slice(x, x + width)

    def cut(plane: Pixels, nothing: int) -> Pixels:
        edge = ((1, 1), (1, 1), (0, 0))[: plane.ndim]
        return np.pad(plane[area], edge, constant_values=nothing)

    clear = None if layer.clear is None else cut(layer.clear, 255)
    return _Layer(cut(layer.colour, 0), cut(layer.keep, 255), clear, layer.left + x - 1, layer.top + y - 1)


class Shot:
    """Cars driving past one backdrop.

    Attributes:
        index: which shot of the clip.
        empty: the backdrop as the camera sees it, without noise, RGB uint8 (height, width, 3).
    """

    def __init__(self, seed: int, index: int, size: Size) -> None:
        """Draws all that does not change; `index` says which shot, the rest is as for `drive`."""
        self.index = index
        self._seed = seed
        self._plan = _plan(seed, index)
        scene, height, width = self._plan.scene, *size
        view, _ = frame(scene, size)
        self._view = view
        quiet = replace(scene.lens, grain=0.0)
        self.empty: Pixels = camera.develop(
            scenery(scene, view, np.random.default_rng(self._plan.texture)),
            quiet,
            np.random.default_rng(self._plan.sensor),
        )
        # What the camera makes of an even grey is what it does to any light.
        grey = np.full((height, width, 3), _GREY, np.float32)
        self._gain: Pixels = camera.develop(
            grey, replace(quiet, blur=0.0), np.random.default_rng(self._plan.sensor)
        )
        tile = np.rint(camera.grain(scene.lens, np.random.default_rng(self._plan.sensor))).astype(np.int16)
        # Frames see different parts of one sheet of noise; two of them, since bytes have no sign.
        self._tile = tile.shape[0]
        sheet = np.pad(tile, ((0, height), (0, width), (0, 0)), mode="wrap")
        self._brighter, self._darker = (
            np.maximum(sheet, 0).astype(np.uint8),
            np.maximum(-sheet, 0).astype(np.uint8),
        )
        sigma = camera.softness(scene.lens, size)
        self._cars = [_Car(replace(scene, car=each), view, behind, sigma) for each, behind in self._plan.cars]

    def draw(self, progress: float, number: int, *, with_cars: bool = True) -> tuple[Pixels, Pixels]:
        """Draws one frame.

        Args:
            progress: how much of the shot has passed: at 0 the first car is about to enter, at 1 the last has
                just left.
            number: of the frame in the clip; decides its noise.
            with_cars: False leaves the cars out of the picture, but not out of the mask, and not their
                shadows.

        Returns:
            See `drive`.
        """
        view, cars = self._view, self._cars
        height, width = view.size
        photo = self.empty.copy()
        unseen = np.full((height, width), 255, np.uint8)
        first, last = cars[0], cars[-1]
        # Where the first car starts, before the picture's middle
        front = width / view.scale / 2 + first.car.length / 2
        way_driven = progress * (front + width / view.scale / 2 + last.behind + last.car.length / 2)
        places = [
            width / 2 + self._plan.way * view.scale * (way_driven - front - each.behind) for each in cars
        ]
        for each, column in zip(cars, places, strict=True):
            self._lay(photo, unseen, each.ground, column, view.ground)
        seen = photo if with_cars else photo.copy()
        for each, column in zip(cars, places, strict=True):
            a, b = self._plan.sway
            at = way_driven - each.behind
            bounce = 0.007 * np.sin(2 * np.pi * at / 2.3 + a) + 0.003 * np.sin(2 * np.pi * at / 0.83 + b)
            self._lay(seen, unseen, each.body, column, view.ground - bounce * view.scale)
            for axle, turned in zip(each.car.axles, each.car.turned, strict=True):
                wheel = each.wheel(turned - at / each.car.radius)
                middle = column + self._plan.way * view.scale * (axle - each.car.length / 2)
                self._lay(seen, unseen, wheel, middle, view.ground)
        y, x = np.random.default_rng((self._seed, number)).integers(0, self._tile, 2)
        area = slice(y, y + height), slice(x, x + width)
        cv2.add(photo, self._brighter[area], dst=photo)
        cv2.subtract(photo, self._darker[area], dst=photo)
        return photo, cast("Pixels", cv2.threshold(unseen, 127, 255, cv2.THRESH_BINARY_INV)[1])

    def _lay(self, photo: Pixels, unseen: Pixels, layer: _Layer, column: float, row: float) -> None:
        """Composites a layer, whose car stands at (column, row), over the picture and the unseen backdrop."""
        x, y = column + layer.left, row + layer.top
        x0, y0 = int(np.floor(x)), int(np.floor(y))
        tall, wide = layer.keep.shape[:2]
        # Pixel i of the moved layer is a mixture of its pixels i - 1 and i.
        left, right = max(x0 + 1, 0), min(x0 + wide, photo.shape[1])
        top, bottom = max(y0 + 1, 0), min(y0 + tall, photo.shape[0])
        if left >= right or top >= bottom:
            return
        part = slice(top - y0 - 1, bottom - y0), slice(left - x0 - 1, right - x0)
        area = slice(top, bottom), slice(left, right)
        across, down = x - x0, y - y0

        def moved(plane: Pixels) -> Pixels:
            there = plane[part]
            level = cv2.addWeighted(there[:, 1:], 1 - across, there[:, :-1], across, 0)
            return cast("Pixels", cv2.addWeighted(level[1:], 1 - down, level[:-1], down, 0))

        seen = photo[area]
        cv2.multiply(seen, moved(layer.keep), dst=seen, scale=1 / 255)
        cv2.add(seen, cv2.multiply(moved(layer.colour), self._gain[area], scale=1 / (255 * _GREY)), dst=seen)
        if layer.clear is not None:
            left_over = unseen[area]
            cv2.multiply(left_over, moved(layer.clear), dst=left_over, scale=1 / 255)
