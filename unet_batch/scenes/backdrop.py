"""What stands behind and under the car: a photo studio, or a road.

Backdrops are RGB float32 (h, w, 3), 0..1. They are soft, so very large pictures get theirs from a smaller
drawing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from unet_batch.scenes.light import Light
from unet_batch.scenes.shapes import blur, noise, ramp

if TYPE_CHECKING:
    from unet_batch.scenes.car import Rgb
    from unet_batch.scenes.shapes import Floats


@dataclass(frozen=True)
class View:
    """Where the camera stands.

    Attributes:
        size: (height, width) of the picture in pixels.
        scale: pixels per metre at the car.
        centre: column of the middle of the car.
        ground: row of the ground under the car.
        horizon: row of the horizon.
        distance: from the camera to the car, in metres.
    """

    size: tuple[int, int]
    scale: float
    centre: float
    ground: float
    horizon: float
    distance: float

    def row(self, depth: float) -> float:
        """Row of the ground `depth` metres behind the car (negative: before it)."""
        return self.horizon + (self.ground - self.horizon) * self.distance / (self.distance + depth)

    def column(self, x: float, depth: float) -> float:
        """Column of what is `x` metres right of the car's middle and `depth` metres behind it."""
        return self.centre + x * self.scale * self.distance / (self.distance + depth)

    def resized(self, factor: float, size: tuple[int, int]) -> View:
        return View(
            size,
            self.scale * factor,
            self.centre * factor,
            self.ground * factor,
            self.horizon * factor,
            self.distance,
        )


@dataclass(frozen=True)
class Studio:
    """A studio.

    Attributes:
        wall, floor: their colours.
        spot: (x, y, reach) of the lamp's glow on the wall, as shares of the width, and its strength.
        seam: 0 where the wall flows into the floor, up to 1 for a hard edge.
        table: radius of the turntable in metres, 0 for none.
        mirror: strength of the car's reflection in the floor.
        panels: a wall made of panels, that many in sight; 0 for a smooth wall.
    """

    wall: Rgb
    floor: Rgb
    spot: tuple[float, float, float, float]
    seam: float
    table: float
    mirror: float
    panels: int

    @property
    def light(self) -> Light:
        wall = np.array(self.wall)
        level = float(wall.mean())
        grey = float(0.72 + 0.28 * level)
        return Light((grey, grey, grey), self.floor, tuple(wall * 0.9), 0.5, 0.84 + 0.2 * level)

    def draw(self, view: View, rng: np.random.Generator) -> Floats:
        height, width = view.size
        row = np.arange(height, dtype=np.float32)[:, None]
        column = np.arange(width, dtype=np.float32)[None]
        unit = float(max(height, width))
        x, y, reach, strength = self.spot
        glow = np.exp(
            -(((column - x * width) / (reach * unit)) ** 2)
            - ((row - y * view.ground) / (0.8 * reach * unit)) ** 2
        )
        wall = np.array(self.wall, np.float32) * (0.86 + np.float32(strength) * glow)[..., None]
        if self.panels:
            step = width / self.panels
            near = np.abs((column + 0.37 * step) % step - step / 2)
            wall *= (1 - 0.07 * np.exp(-((near / (0.0016 * unit)) ** 2)) * ramp(row, view.horizon * 1.1, 0))[
                ..., None
            ]
        depth = (row - view.horizon) / max(height - view.horizon, 1.0)
        pool = np.exp(
            -(((column - view.centre) / (3.6 * view.scale)) ** 2)
            - ((row - view.ground) / (1.1 * view.scale)) ** 2
        )
        floor = (
            np.array(self.floor, np.float32) * (0.90 + 0.12 * pool - 0.12 * np.clip(depth, 0, 1))[..., None]
        )
        soft = (1 - self.seam) * 0.55 * view.scale + 1.0
        share = ramp(row, view.horizon - soft, view.horizon + soft)[..., None]
        picture: Floats = wall + (floor - wall) * share
        # The bend of the backdrop is a little darker than the wall and the floor.
        picture *= (1 - 0.06 * np.exp(-(((row - view.horizon) / (0.6 * soft + 0.12 * view.scale)) ** 2)))[
            ..., None
        ]
        if self.table:
            self._turntable(picture, view)
        picture *= (0.985 + 0.03 * noise(rng, view.size, (2, 3), 3))[..., None]
        return picture

    def _turntable(self, picture: Floats, view: View) -> None:
        """A round stage: a lighter disc with a dark gap and a lit edge."""
        # How much the camera foreshortens the floor
        flat = (view.ground - view.horizon) / view.distance / view.scale
        centre = (view.centre, view.ground - 0.03 * view.scale)
        axes = (self.table * view.scale, self.table * view.scale * max(flat, 0.06))
        disc = np.zeros(view.size, np.uint8)
        lower = np.zeros(view.size, np.uint8)
        for mask, drop in ((disc, 0.0), (lower, 0.035 * view.scale)):
            shape = [round(v * 16) for v in (centre[0], centre[1] + drop, *axes)]
            cv2.ellipse(mask, (shape[0], shape[1]), (shape[2], shape[3]), 0, 0, 360, 255, -1, cv2.LINE_AA, 4)
        shadow = cv2.GaussianBlur(lower, (0, 0), max(0.04 * view.scale, 0.4)).astype(np.float32) / 255
        top = disc.astype(np.float32) / 255
        edge = np.maximum(lower.astype(np.float32) / 255 - top, 0)
        picture *= (1 - 0.16 * shadow * (1 - top))[..., None]
        picture *= (1 - 0.22 * edge)[..., None]
        picture *= (1 + 0.045 * top)[..., None]


@dataclass(frozen=True)
class Road:
    """A road under the open sky.

    Attributes:
        zenith, haze: colours of the sky high up and at the horizon.
        clouds: how much of the sky they cover, 0..1.
        sun: strength of the sun's shadow, 0 on a dull day.
        lean: how far the shadow falls to the right per metre of height.
        asphalt: brightness of the road.
        wet: strength of the car's reflection in the road.
        verge: colour of what lies beyond the kerb.
        far: what stands on the horizon: any of "hills", "trees", "houses".
        kerb: distance of the far kerb behind the car, in metres.
        lanes: distances behind the car (negative: before it) of dashed lines.
        solid: distance of a solid line; 0 for none.
        power: brightness of the day.
    """

    zenith: Rgb
    haze: Rgb
    clouds: float
    sun: float
    lean: float
    asphalt: float
    wet: float
    verge: Rgb
    far: tuple[str, ...]
    kerb: float
    lanes: tuple[float, ...]
    solid: float
    power: float

    @property
    def light(self) -> Light:
        haze = np.array(self.haze)
        sky = tuple(0.5 * haze + 0.5 * np.array(self.zenith) + 0.08)
        ground = (self.asphalt, self.asphalt, self.asphalt)
        behind = tuple((0.45 * haze + 0.35 * np.array(self.verge)) * 0.9)
        return Light(sky, ground, behind, 1.0, 0.80 + 0.22 * self.power)

    def draw(self, view: View, rng: np.random.Generator) -> Floats:
        picture = self._sky(view, rng)
        for thing in self.far:
            {"hills": self._hills, "trees": self._trees, "houses": self._houses}[thing](picture, view, rng)
        self._land(picture, view, rng)
        # The lens focuses on the car: what is far is soft.
        sigma = 0.022 * view.scale
        end = int(np.clip(view.row(self.kerb * 0.8), 1, view.size[0]))
        if sigma > 0.35:
            picture[:end] = blur(picture[: end + 8], sigma)[:end]
        picture *= np.float32(0.80 + 0.2 * self.power)
        return picture

    def _sky(self, view: View, rng: np.random.Generator) -> Floats:
        height, width = view.size
        row = np.arange(height, dtype=np.float32)[:, None]
        t = np.clip(row / max(view.horizon, 1.0), 0, 1) ** 1.3
        zenith, haze = np.array(self.zenith, np.float32), np.array(self.haze, np.float32)
        picture = np.ascontiguousarray(
            np.broadcast_to((zenith + (haze - zenith) * t[..., None]), (height, width, 3))
        )
        end = int(np.clip(np.ceil(view.horizon), 1, height))
        cells = (3, 3) if height > width else (4, 3)
        field = noise(rng, (end, width), cells, 6)
        cover = 0.68 - 0.32 * self.clouds
        share = ramp(field, cover - 0.06, cover + 0.16)[..., None] * np.float32(0.9)
        above = field[np.maximum(np.arange(end) - max(end // 24, 1), 0)]  # thick above means dark below
        shadow = ramp(above, cover, cover + 0.3)[..., None]
        bright = np.array((0.97, 0.97, 0.98), np.float32) - 0.20 * shadow * np.array(
            (1, 0.95, 0.85), np.float32
        )
        picture[:end] += (bright - picture[:end]) * share
        return picture

    def _hills(self, picture: Floats, view: View, rng: np.random.Generator) -> None:
        height, width = view.size
        row = np.arange(height, dtype=np.float32)[:, None]
        haze = np.array(self.haze, np.float32)
        for layer, tone in enumerate(((0.50, 0.58, 0.66), (0.36, 0.46, 0.44))):
            ridge = noise(rng, (1, width), (1, 3 + 2 * layer), 6)
            crest = np.float32(view.horizon) - (0.15 + ridge) * np.float32(view.scale * (1.25 - 0.45 * layer))
            share = np.clip(row - crest, 0, 1)[..., None]
            colour = np.array(tone, np.float32) * 0.75 + haze * 0.25
            fade = np.clip((row - crest) / np.float32(1.5 * view.scale), 0, 1)[..., None]
            picture += (colour + (haze - colour) * 0.35 * fade - picture) * share

    def _trees(self, picture: Floats, view: View, rng: np.random.Generator) -> None:
        """Rows of trees; the crest of a row is the highest of its round crowns, ragged by leaves."""
        height, width = view.size
        base = np.float32(view.row(60))
        row = np.arange(height, dtype=np.float32)[:, None]
        x = (np.arange(width, dtype=np.float32)[None] - np.float32(view.centre)) / np.float32(view.scale)
        tone = np.array(self.verge, np.float32) * np.array((0.80, 1.0, 0.75), np.float32)
        haze = np.array(self.haze, np.float32)
        start = int(np.clip(view.row(60) - 1.9 * view.scale, 0, height - 1))
        end = int(np.clip(view.row(60) + 0.1 * view.scale, start + 1, height))
        for layer, (tall, wide, count) in enumerate(((0.75, 0.75, 26), (0.35, 0.55, 34), (0.05, 0.35, 44))):
            dice = rng.random((count, 4)).astype(np.float32)
            radius = (0.45 + 0.9 * dice[:, :1]) * np.float32(wide * 0.75)
            middle = (dice[:, 1:2] - 0.5) * 14
            crown = radius * np.sqrt(np.maximum(1 - ((x - middle) / radius) ** 2, 0)) * 1.15 + (
                tall * dice[:, 2:3]
            ) * (np.abs(x - middle) < radius)
            ragged = noise(rng, (1, width), (1, 40), 4) - 0.5
            crest = base - (crown.max(axis=0) + 0.22 * ragged[0] + 0.12 * (layer + 1)) * np.float32(
                view.scale
            )
            shade = 0.75 + 0.5 * dice[crown.argmax(axis=0), 3]
            shade = blur(shade[None], max(0.03 * view.scale, 0.5))
            leaves = noise(rng, (end - start, width), (12, 40), 4)
            share = np.clip((row[start:end] - crest[None]) / np.float32(0.02 * view.scale + 1), 0, 1)
            up = ramp(row[start:end] - crest[None], 0.7 * view.scale, 0)  # light comes from above
            lit = shade * (0.40 + 0.55 * up + 1.5 * (leaves - 0.5))
            colour = tone * np.clip(lit, 0.12, 1.6)[..., None]
            colour += (haze - colour) * np.float32(0.22 - 0.09 * layer)
            picture[start:end] += (colour - picture[start:end]) * share[..., None]

    def _houses(self, picture: Floats, view: View, rng: np.random.Generator) -> None:
        """A street of houses with rows of windows."""
        height, width = view.size
        scale = view.scale * view.distance / (view.distance + 26)  # pixels per metre over there
        base = int(np.clip(view.row(26), 0, height))
        dice = rng.random((40, 7))
        column = -scale * 6 * dice[0, 0]
        for kind, tall, wide, tone, step, gap, roof in dice:
            right = column + (6 + 12 * wide) * scale
            top = int(base - (4 + 8 * tall * tall + 2 * kind) * scale)
            x0, x1, y0 = int(max(column, 0)), int(min(right, width)), max(top, 0)
            column = right + scale * (5 * gap if gap > 0.6 else 0)
            if x1 <= x0 or base <= y0:
                continue
            walls = (
                (0.62, 0.56, 0.50),
                (0.55, 0.55, 0.56),
                (0.52, 0.38, 0.32),
                (0.70, 0.68, 0.62),
                (0.42, 0.45, 0.50),
            )
            colour = np.array(walls[int(kind * 5)], np.float32) * (0.75 + 0.35 * tone)
            x = (np.arange(x0, x1, dtype=np.float32)[None] - right) / scale
            y = (base - np.arange(y0, base, dtype=np.float32)[:, None]) / scale
            pane = (np.abs(x % (2.2 + step) - 1.2) < 0.55) & (np.abs(y % 2.9 - 1.7) < 0.75) & (y > 0.8)
            glass = np.array((0.22, 0.26, 0.31), np.float32) + 0.25 * np.array(
                self.haze, np.float32
            ) * np.float32(tone)
            block = np.where(pane[..., None], glass, colour * (0.92 + 0.012 * y)[..., None])
            block[: max(int(0.35 * scale), 1)] = colour * (0.55 + 0.3 * roof)
            picture[y0:base, x0:x1] = block
            if x0 == int(max(column, 0)):
                continue
            picture[y0:base, max(x1 - max(int(0.25 * scale), 1), x0) : x1] *= 0.82

    def _land(self, picture: Floats, view: View, rng: np.random.Generator) -> None:
        """Everything below the horizon: verge, pavement, kerb, road and its markings, in perspective."""
        height, width = view.size
        start = int(np.clip(view.row(80), 0, height - 1))
        row = np.arange(start, height, dtype=np.float32)[:, None] + np.float32(0.5)
        reach = np.float32((view.ground - view.horizon) * view.distance)
        depth = reach / np.maximum(row - np.float32(view.horizon), 0.5) - np.float32(view.distance)
        # Pixels per metre in that row
        scale = np.float32(view.scale * view.distance) / (np.float32(view.distance) + depth)
        across = (np.arange(width, dtype=np.float32)[None] - np.float32(view.centre)) / scale
        fine, coarse = self._grain(across, depth, rng)

        asphalt = np.float32(self.asphalt) * (1 + 0.10 * (coarse - 0.5))
        near = np.clip(scale / np.float32(view.scale), 0, 2)
        asphalt = asphalt * (1 + (fine - 0.5) * 0.42 * np.clip(near, 0.15, 1.2))
        # Where tyres polish it
        asphalt = asphalt * (1 - 0.07 * np.exp(-(((np.abs(depth - 0.9) - 0.85) / 0.35) ** 2)))
        land = asphalt[..., None] * np.array((1.0, 1.0, 1.015), np.float32)
        land += (
            (np.array(self.haze, np.float32) * np.float32(self.asphalt * 1.4) - land)
            * ramp(depth, 4, 60)[..., None]
            * 0.5
        )

        worn = 0.62 + 0.5 * coarse
        for lane in self.lanes:
            dash = ramp(np.abs((across + lane) % 9.0 - 4.5), 1.56, 1.5) * ramp(
                np.abs(depth - lane), 0.085, 0.055
            )
            self._stripe(land, dash * worn)
        if self.solid:
            self._stripe(land, ramp(np.abs(depth - self.solid), 0.09, 0.055) * np.ones_like(across) * worn)

        verge = (
            np.array(self.verge, np.float32)
            * (0.72 + 0.55 * fine * np.clip(near * 1.6, 0.3, 1) + 0.2 * coarse)[..., None]
        )
        kerb = np.float32(self.kerb)
        path = np.float32(0.60) * (0.9 + 0.16 * fine)[..., None] * np.array((1.0, 0.985, 0.96), np.float32)
        joints = ramp(np.abs(across % 1.2 - 0.6), 0.58, 0.598)[..., None]
        path *= 1 - 0.15 * joints
        soft = np.float32(0.03) + np.maximum(depth, 0) * np.float32(0.006)
        land += (path - land) * ramp_between(depth, self.kerb + 0.16, soft)
        land += (verge - land) * ramp_between(depth, self.kerb + 2.3, soft)
        # The kerb stone: a lit top and a dark face towards the road.
        stone = np.exp(-(((depth - kerb - 0.10) / 0.10) ** 2))[..., None]
        land += (np.float32(0.66) - land) * stone * 0.8
        face = np.exp(-(((depth - kerb + 0.14) / 0.12) ** 2))[..., None]
        land *= 1 - 0.38 * face
        share = np.clip((row - view.row(80)) / 1.5, 0, 1)[..., None]
        picture[start:] += (land - picture[start:]) * share

    def _stripe(self, land: Floats, share: Floats) -> None:
        land += (np.array((0.86, 0.86, 0.83), np.float32) - land) * np.clip(share, 0, 0.92)[..., None]

    def _grain(self, across: Floats, depth: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Two textures of the ground, fine stones and large patches, as the camera sees them."""
        tile = rng.random((256, 256), dtype=np.float32)
        tile = blur(tile, 0.8)
        tile = np.clip((tile - 0.5) * 2.2 + 0.5, 0, 1)
        wide = noise(rng, (256, 256), (8, 8), 3)
        shape = (across.shape[0], across.shape[1])

        def fold(at: Floats) -> Floats:  # back and forth over the texture: no seams
            folded: Floats = np.abs(np.mod(at, 510) - 255)
            return folded

        def look(texture: Floats, per_metre: float) -> Floats:
            x = fold(across * np.float32(per_metre))
            y = np.ascontiguousarray(np.broadcast_to(fold((depth + 100) * np.float32(per_metre)), shape))
            return cast("Floats", cv2.remap(texture, x, y, cv2.INTER_LINEAR))

        return 0.62 * look(tile, 83.0) + 0.38 * look(tile, 19.0), look(wide, 9.0)


def ramp_between(depth: Floats, edge: float, soft: Floats) -> Floats:
    """1 behind `edge`, 0 before it, as (rows, 1, 1); `soft` is half the width of the change, per row."""
    result: Floats = np.clip((depth - np.float32(edge)) / (2 * soft) + np.float32(0.5), 0, 1)[..., None]
    return result


def roll_studio(rng: np.random.Generator) -> Studio:
    """A random studio: mostly white or light grey, sometimes dark."""
    level = float(rng.choice([0.97, 0.88, 0.76, 0.30], p=[0.42, 0.28, 0.20, 0.10]) * rng.uniform(0.95, 1.03))
    tint = rng.uniform(-0.02, 0.02, 2)
    wall = (level * (1 + tint[0]), level, level * (1 + tint[1]))
    gain = float(rng.uniform(0.86, 1.0) if level > 0.5 else rng.uniform(0.9, 1.4))
    return Studio(
        wall=wall,
        floor=(wall[0] * gain, wall[1] * gain, wall[2] * gain),
        spot=(
            float(rng.uniform(0.25, 0.75)),
            float(rng.uniform(0.1, 0.6)),
            float(rng.uniform(0.35, 0.7)),
            float(rng.uniform(0.08, 0.26)),
        ),
        seam=float(rng.choice([0.0, 0.3, 0.9], p=[0.55, 0.3, 0.15])),
        table=float(rng.choice([0.0, rng.uniform(2.9, 3.4)], p=[0.4, 0.6])),
        mirror=float(rng.choice([rng.uniform(0.02, 0.08), rng.uniform(0.10, 0.24)])),
        panels=int(rng.choice([0, 0, 0, 5, 8])),
    )


def roll_road(rng: np.random.Generator) -> Road:
    """A random road: a clear, a cloudy, a dull or an evening sky over town or country."""
    skies: tuple[tuple[Rgb, Rgb, float, float, float], ...] = (
        ((0.25, 0.47, 0.78), (0.76, 0.85, 0.92), 0.30, 1.0, 1.0),
        ((0.34, 0.54, 0.80), (0.82, 0.88, 0.92), 0.65, 0.8, 0.97),
        ((0.62, 0.66, 0.71), (0.82, 0.84, 0.86), 0.90, 0.0, 0.80),
        ((0.34, 0.40, 0.58), (0.95, 0.76, 0.58), 0.45, 0.5, 0.78),
    )
    zenith, haze, clouds, sun, power = skies[int(rng.choice(4, p=[0.34, 0.3, 0.22, 0.14]))]
    verges: tuple[Rgb, ...] = ((0.26, 0.36, 0.14), (0.33, 0.38, 0.18), (0.50, 0.45, 0.28), (0.22, 0.32, 0.16))
    scenery: tuple[tuple[str, ...], ...] = (
        ("hills",), ("hills", "trees"), ("trees",), ("houses",), ("houses", "trees"),
        ("hills", "houses", "trees"),
    )  # fmt: skip
    return Road(
        zenith=zenith,
        haze=haze,
        clouds=float(clouds * rng.uniform(0.7, 1.2)),
        sun=float(sun * rng.uniform(0.7, 1.0)),
        lean=float(rng.uniform(-0.5, 0.5)),
        asphalt=float(rng.choice([0.20, 0.30, 0.40]) * rng.uniform(0.9, 1.1)),
        wet=float(rng.choice([0.0, 0.0, 0.0, 0.16])),
        verge=verges[int(rng.integers(4))],
        far=scenery[int(rng.choice(6, p=[0.12, 0.22, 0.24, 0.14, 0.16, 0.12]))],
        kerb=float(rng.uniform(3.2, 6.5)),
        lanes=((-2.2,), (2.1,), (-2.4, 2.2), ())[int(rng.choice(4, p=[0.35, 0.25, 0.25, 0.15]))],
        solid=float(rng.choice([0.0, -2.7, 2.6], p=[0.6, 0.2, 0.2])),
        power=power,
    )
