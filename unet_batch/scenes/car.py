"""Shapes of cars seen from the side, in metres, and their random variation. No pixels here.

A car faces right; x runs from its rear bumper (0) forward, y from the ground (0) upward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unet_batch.scenes.shapes import Point

if TYPE_CHECKING:
    import numpy as np

Outline = tuple[Point, ...]
Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class Style:
    """One body shape.

    Attributes:
        outline: control polygon of the body without wheels (see `shapes.smooth`).
        glass: control polygons of the side windows.
        pillars: (x at the belt, x at the roof, width) of the bars across the windows.
        doors: x of the door gaps, rear to front; the first door gap is the rearmost.
        wheels: x of the rear axle, x of the front axle, radius of the tyre.
        belt: height of the shoulder line at the rear and at the front.
        sill: height of the lower edge of the doors.
        top: height of the roof.
        screen: control polygon of the sliver of windscreen that shows beside its pillar.
        head, tail: control polygons of the lights; the body clips them.
        mirror: where the door mirror sits.
        rugged: wheel arches and sills in black plastic.
        rails: rails on the roof, from x to x; empty for none.
    """

    name: str
    outline: Outline
    glass: tuple[Outline, ...]
    pillars: tuple[tuple[float, float, float], ...]
    doors: tuple[float, ...]
    wheels: tuple[float, float, float]
    belt: tuple[float, float]
    sill: float
    top: float
    screen: Outline
    head: Outline
    tail: Outline
    mirror: tuple[float, float]
    rugged: bool = False
    rails: tuple[float, ...] = ()

    @property
    def length(self) -> float:
        return max(p[0] for p in self.outline)


# fmt: off
SEDAN = Style(
    "sedan",
    ((.42, .20, .2), (.10, .21, .4), (.0, .48), (.0, .78), (.05, 1.08, .22), (.30, 1.11), (.74, 1.10),
     (1.32, 1.43), (2.05, 1.50), (2.72, 1.47), (3.52, 1.00, .3), (4.12, .96), (4.55, .83), (4.72, .62),
     (4.75, .35), (4.67, .17, .4), (4.35, .18, .2)),
    (((.98, 1.07, .06), (3.22, 1.00, .05), (2.62, 1.38, .22), (2.05, 1.41), (1.52, 1.35, .3)),),
    ((2.14, 2.10, .10), (1.32, 1.47, .045)), (1.28, 2.14, 3.30), (.98, 3.82, .33), (1.02, .94), .24, 1.46,
    ((2.70, 1.44, 0), (3.50, 1.02, 0), (3.40, 1.02, 0), (2.66, 1.43, 0)),
    ((4.28, .66, .2), (4.80, .56, .2), (4.80, .72, .2), (4.42, .78, .3)),
    ((-.1, .78, .2), (.36, .86, .3), (.30, .99, .3), (-.1, 1.0, .2)), (3.12, 1.03))
COUPE = Style(
    "coupe",
    ((.42, .18, .2), (.10, .19, .4), (.0, .45), (.0, .72), (.04, 1.00, .2), (.30, 1.03, .4), (.70, 1.06),
     (1.45, 1.35), (2.10, 1.41), (2.66, 1.36), (3.42, .94, .35), (3.98, .90), (4.33, .77), (4.47, .56),
     (4.50, .32), (4.42, .15, .4), (4.10, .16, .2)),
    (((1.06, 1.03, .06), (3.02, .93, .05), (2.52, 1.27, .22), (2.02, 1.31), (1.55, 1.25, .35)),),
    ((1.66, 1.80, .07),), (1.58, 3.08), (.92, 3.62, .34), (.98, .88), .22, 1.37,
    ((2.62, 1.35, 0), (3.38, .97, 0), (3.28, .96, 0), (2.58, 1.34, 0)),
    ((4.02, .63, .2), (4.60, .52, .2), (4.60, .64, .2), (4.16, .73, .3)),
    ((-.1, .76, .2), (.40, .82, .3), (.34, .92, .3), (-.1, .94, .2)), (2.94, .97))
HATCH = Style(
    "hatchback",
    ((.38, .21, .2), (.08, .22, .4), (.0, .5), (.0, .8), (.08, 1.02, .3), (.26, 1.42, .35), (.30, 1.49, .2),
     (.9, 1.53), (1.75, 1.54), (2.25, 1.50), (3.05, 1.03, .3), (3.55, .98), (3.92, .84), (4.06, .64),
     (4.10, .36), (4.03, .19, .4), (3.75, .19, .2)),
    (((.66, 1.10, .08), (2.80, 1.02, .05), (2.20, 1.41, .22), (1.40, 1.45), (.74, 1.40, .25)),),
    ((1.80, 1.76, .10), (1.02, 1.10, .045)), (1.00, 1.80, 2.84), (.70, 3.28, .31), (1.02, .96), .25, 1.52,
    ((2.24, 1.48, 0), (3.03, 1.05, 0), (2.93, 1.05, 0), (2.20, 1.46, 0)),
    ((3.64, .68, .2), (4.20, .58, .2), (4.20, .76, .2), (3.76, .83, .3)),
    ((-.1, .82, .2), (.26, .84, .3), (.28, 1.04, .3), (-.1, 1.06, .2)), (2.68, 1.06))
ESTATE = Style(
    "estate",
    ((.42, .20, .2), (.10, .21, .4), (.0, .48), (.0, .78), (.06, 1.02, .3), (.34, 1.42, .3), (.40, 1.49, .2),
     (1.1, 1.52), (2.05, 1.52), (2.74, 1.48), (3.54, 1.00, .3), (4.14, .96), (4.57, .83), (4.74, .62),
     (4.78, .35), (4.70, .17, .4), (4.38, .18, .2)),
    (((.50, 1.09, .06), (3.24, 1.00, .05), (2.66, 1.39, .22), (1.80, 1.43), (.74, 1.39, .25)),),
    ((2.16, 2.12, .10), (1.30, 1.36, .09)), (1.28, 2.16, 3.32), (.98, 3.84, .33), (1.02, .94), .24, 1.50,
    ((2.72, 1.45, 0), (3.52, 1.02, 0), (3.42, 1.02, 0), (2.68, 1.44, 0)),
    ((4.30, .66, .2), (4.84, .56, .2), (4.84, .72, .2), (4.44, .78, .3)),
    ((-.1, .80, .2), (.34, .84, .3), (.28, 1.04, .3), (-.1, 1.05, .2)), (3.14, 1.03), rails=(.62, 2.5))
SUV = Style(
    "suv",
    ((.42, .30, .2), (.08, .31, .4), (.0, .6), (.0, .95), (.06, 1.18, .3), (.26, 1.60, .35), (.32, 1.68, .2),
     (1.2, 1.74), (2.15, 1.73), (2.65, 1.68), (3.34, 1.18, .3), (3.95, 1.14), (4.40, 1.03), (4.56, .82),
     (4.60, .50), (4.52, .29, .4), (4.25, .28, .2)),
    (((.46, 1.23, .06), (3.12, 1.15, .05), (2.56, 1.57, .22), (1.60, 1.63), (.60, 1.57, .25)),),
    ((1.98, 1.96, .11), (1.12, 1.18, .09)), (1.06, 1.98, 3.14), (.86, 3.62, .37), (1.16, 1.08), .34, 1.71,
    ((2.66, 1.64, 0), (3.32, 1.19, 0), (3.22, 1.19, 0), (2.62, 1.62, 0)),
    ((4.14, .84, .2), (4.70, .76, .2), (4.70, .94, .2), (4.24, 1.00, .3)),
    ((-.1, .94, .2), (.28, .98, .3), (.30, 1.20, .3), (-.1, 1.22, .2)), (3.00, 1.20),
    rugged=True, rails=(.52, 2.4))
PANEL = Style(
    "van",
    ((.32, .25, .2), (.04, .27, .3), (.0, .6), (.0, 1.2), (.06, 1.88, .2), (.34, 1.96, .4), (2.0, 2.00),
     (3.20, 1.97), (3.72, 1.86), (4.42, 1.17, .35), (4.78, 1.04), (4.96, .80), (5.00, .45), (4.93, .24, .4),
     (4.60, .23, .2)),
    (((3.02, 1.22, .08), (4.16, 1.13, .06), (3.60, 1.74, .22), (3.02, 1.78, .08)),),
    (), (1.75, 2.90, 4.20), (.95, 4.05, .33), (1.16, 1.04), .30, 1.97,
    ((3.74, 1.80, 0), (4.40, 1.19, 0), (4.30, 1.19, 0), (3.68, 1.80, 0)),
    ((4.50, .78, .2), (5.10, .66, .2), (5.10, .88, .2), (4.62, .97, .3)),
    ((-.1, .78, .1), (.10, .78, .2), (.12, 1.30, .2), (-.1, 1.30, .1)), (4.00, 1.20))
PEOPLE = Style(
    "minivan",
    ((.34, .24, .2), (.06, .26, .3), (.0, .55), (.0, 1.0), (.08, 1.25, .3), (.20, 1.72, .3), (.34, 1.80, .4),
     (1.9, 1.83), (2.85, 1.80), (3.35, 1.68), (4.10, 1.10, .35), (4.45, 1.02), (4.70, .80), (4.76, .45),
     (4.69, .22, .4), (4.38, .22, .2)),
    (((.36, 1.22, .08), (3.76, 1.10, .05), (3.20, 1.60, .22), (2.40, 1.69), (.50, 1.66, .2)),),
    ((2.52, 2.48, .10), (1.40, 1.42, .10)), (1.36, 2.52, 3.86), (.92, 3.80, .33), (1.12, 1.02), .28, 1.81,
    ((3.36, 1.63, 0), (4.08, 1.12, 0), (3.98, 1.12, 0), (3.30, 1.63, 0)),
    ((4.26, .76, .2), (4.90, .66, .2), (4.90, .86, .2), (4.38, .96, .3)),
    ((-.1, .94, .2), (.16, .96, .2), (.24, 1.40, .3), (-.1, 1.42, .2)), (3.62, 1.17))
PICKUP = Style(
    "pickup",
    ((.30, .38, .2), (.05, .40, .3), (.0, .6, .3), (.02, 1.16, .08), (.12, 1.17, .2), (1.90, 1.17, .04),
     (2.00, 1.19, .1), (2.08, 1.70, .22), (2.34, 1.80), (3.05, 1.82), (3.50, 1.76), (4.12, 1.22, .3),
     (4.80, 1.17, .4), (5.18, 1.05, .4), (5.29, .84), (5.30, .55), (5.22, .34, .4), (4.92, .34, .2)),
    (((2.20, 1.25, .06), (3.92, 1.20, .05), (3.40, 1.64, .22), (2.90, 1.69), (2.24, 1.64, .12)),),
    ((2.96, 2.94, .11),), (2.14, 2.96, 3.98), (1.12, 4.42, .39), (1.17, 1.10), .40, 1.79,
    ((3.50, 1.72, 0), (4.10, 1.23, 0), (4.00, 1.23, 0), (3.46, 1.70, 0)),
    ((4.92, .88, .2), (5.40, .82, .2), (5.40, 1.02, .2), (4.98, 1.04, .3)),
    ((-.1, .80, .1), (.12, .80, .2), (.14, 1.12, .2), (-.1, 1.12, .1)), (3.82, 1.26), rugged=True)
# fmt: on
STYLES = (SEDAN, COUPE, HATCH, ESTATE, SUV, PANEL, PEOPLE, PICKUP)

# Paint as (colour, share of new cars), roughly what stands on a dealer's lot.
PAINTS: tuple[tuple[Rgb, float], ...] = (
    ((0.90, 0.90, 0.89), 0.16),  # white
    ((0.82, 0.80, 0.75), 0.04),  # pearl
    ((0.60, 0.62, 0.64), 0.11),  # silver
    ((0.30, 0.32, 0.35), 0.11),  # grey
    ((0.035, 0.037, 0.042), 0.13),  # black
    ((0.62, 0.05, 0.05), 0.09),  # red
    ((0.34, 0.03, 0.06), 0.03),  # burgundy
    ((0.06, 0.20, 0.52), 0.08),  # blue
    ((0.04, 0.08, 0.22), 0.05),  # navy
    ((0.34, 0.52, 0.68), 0.03),  # pale blue
    ((0.05, 0.25, 0.15), 0.05),  # green
    ((0.45, 0.56, 0.22), 0.02),  # lime
    ((0.88, 0.66, 0.06), 0.04),  # yellow
    ((0.80, 0.30, 0.05), 0.03),  # orange
    ((0.52, 0.45, 0.35), 0.03),  # beige
)


@dataclass(frozen=True)
class Car:
    """One car: a body shape and how this one differs from its like.

    Attributes:
        stretch: factors of all lengths, of all heights, and of the greenhouse's height above the belt.
        paint: colour of the body, 0..1.
        gloss: strength of reflections in the paint.
        tint: darkness of the rear windows, 0 clear to 1 black.
        spokes, twin: number of spokes of a rim, and whether each is a pair.
        rim: brightness of the rims.
        turned: angle of the front and the rear wheel in radians.
        profile: height of the tyre's wall as a share of its radius.
        chrome: windows framed in chrome instead of black.
        crease: height of the lower crease in the doors, as a share from sill to belt.
        flap: the fuel flap is on this side.
        wobble: phases of the waves in the reflections.
    """

    style: Style
    stretch: tuple[float, float, float]
    paint: Rgb
    gloss: float
    tint: float
    spokes: int
    twin: bool
    rim: float
    turned: tuple[float, float]
    profile: float
    chrome: bool
    crease: float
    flap: bool
    wobble: tuple[float, float, float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the style's drawing lies on this car, in metres."""
        belt = self.style.belt[1]
        return x * self.stretch[0], (min(y, belt) + max(y - belt, 0.0) * self.stretch[2]) * self.stretch[1]

    def shape(self, outline: Outline) -> Outline:
        """A control polygon of the style, on this car."""
        return tuple((*self.place(p[0], p[1]), *p[2:]) for p in outline)

    @property
    def length(self) -> float:
        return self.place(self.style.length, 0)[0]

    @property
    def height(self) -> float:
        return self.place(0, self.style.top)[1]

    @property
    def radius(self) -> float:
        return self.style.wheels[2] * self.stretch[1]

    @property
    def axles(self) -> tuple[float, float]:
        return self.place(self.style.wheels[0], 0)[0], self.place(self.style.wheels[1], 0)[0]


def roll(rng: np.random.Generator) -> Car:
    """A random car."""
    style = STYLES[int(rng.choice(len(STYLES), p=[0.2, 0.13, 0.17, 0.1, 0.18, 0.07, 0.07, 0.08]))]
    shares = [share for _, share in PAINTS]
    colour = PAINTS[int(rng.choice(len(PAINTS), p=[s / sum(shares) for s in shares]))][0]
    shift = rng.uniform(0.9, 1.1, 3)
    return Car(
        style=style,
        stretch=(
            float(rng.uniform(0.95, 1.06)),
            float(rng.uniform(0.96, 1.05)),
            float(rng.uniform(0.94, 1.07)),
        ),
        paint=(
            min(colour[0] * shift[0], 0.95),
            min(colour[1] * shift[1], 0.95),
            min(colour[2] * shift[2], 0.95),
        )
        if max(colour) - min(colour) > 0.12
        else (colour[0] * shift[0], colour[1] * shift[0], colour[2] * shift[0]),
        gloss=float(rng.uniform(0.75, 1.15)),
        tint=float(rng.choice([0.15, 0.5, 0.8])),
        spokes=int(rng.choice([5, 5, 6, 7, 8, 10])),
        twin=bool(rng.random() < 0.4),
        rim=float(rng.choice([0.14, 0.42, 0.72, 0.82], p=[0.2, 0.15, 0.4, 0.25])),
        turned=(float(rng.uniform(0, 6.3)), float(rng.uniform(0, 6.3))),
        profile=float(rng.uniform(0.24, 0.36)),
        chrome=bool(rng.random() < 0.35),
        crease=float(rng.uniform(0.2, 0.36)),
        flap=bool(rng.random() < 0.5),
        wobble=(float(rng.uniform(0, 6.3)), float(rng.uniform(0, 6.3)), float(rng.uniform(0, 6.3))),
    )
