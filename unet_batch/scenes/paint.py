"""Draws a car, part by part, on a transparent canvas.

Shading is a function of where a point lies on the car (metres), so a part looks the same at every picture
size. Each part has a function, and `draw_car` calls them in the order they cover each other; wheels are in
`wheel.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from unet_batch.scenes.car import Car, Rgb
from unet_batch.scenes.shapes import box, ellipse, line, ramp, smooth, stroke
from unet_batch.scenes.wheel import draw_wheel, draw_wheel_house

if TYPE_CHECKING:
    from unet_batch.scenes.canvas import Canvas, Shade
    from unet_batch.scenes.light import Light
    from unet_batch.scenes.shapes import Floats

_STEPS = 2048  # entries of a shading table


def draw_car(canvas: Canvas, car: Car, light: Light, *, wheels: bool = True) -> None:
    """Draws the car onto the canvas; afterwards `canvas.alpha` is its silhouette.

    Args:
        wheels: False leaves the wheel houses empty (see `draw_wheel`).
    """
    body = smooth(car.shape(car.style.outline), 14)
    _extras(canvas, car)
    canvas.put(body, (0.0, 0.0, 0.0), new=True)
    found = canvas.cover([body])
    if found is None:
        return
    area, share = found
    canvas.mix(area, share, _painted(canvas, car, light, area, share))
    _trim(canvas, car, light)
    _glass(canvas, car, light)
    _doors(canvas, car)
    _lamps(canvas, car)
    for axle, turned in zip(car.axles, car.turned, strict=True):
        draw_wheel_house(canvas, car, axle)
        if wheels:
            draw_wheel(canvas, car, light, axle, turned)
    _mirror(canvas, car, light)


def _table(points: Sequence[tuple[float, float]], at: Floats, low: float, high: float) -> Floats:
    """A piecewise linear curve through `points`, looked up at `at` (clipped to low..high)."""
    values = np.interp(np.linspace(low, high, _STEPS), [p[0] for p in points], [p[1] for p in points]).astype(
        np.float32
    )
    index = ((at - np.float32(low)) * np.float32((_STEPS - 1) / (high - low))).astype(np.int32)
    result: Floats = values[np.clip(index, 0, _STEPS - 1)]
    return result


def _belt(car: Car, x: Floats) -> Floats:
    """Height of the shoulder line over x, in metres."""
    rear, front = (car.place(0, y)[1] for y in car.style.belt)
    along = x / np.float32(car.length)
    height: Floats = np.float32(rear) + np.float32(front - rear) * along + 0.05 * (along * (1 - along))
    return height


def _roundness(share: Floats, sigma: float) -> tuple[Floats, Floats]:
    """How far the metal turns away from the viewer near the silhouette: (sideways, upward), each -1..1."""
    step = max(1, int(sigma / 4))  # it is smooth: a coarse grid is enough
    height, width = share.shape
    small = cv2.resize(share, (max(width // step, 1), max(height // step, 1)), interpolation=cv2.INTER_AREA)
    small = cv2.copyMakeBorder(small, 8, 8, 8, 8, cv2.BORDER_CONSTANT, value=0)
    small = cv2.GaussianBlur(small, (0, 0), sigma / step)
    gain = 2.5 * sigma / step
    up = (np.roll(small, -1, axis=0) - np.roll(small, 1, axis=0))[8:-8, 8:-8] * np.float32(gain / 2)
    side = (np.roll(small, -1, axis=1) - np.roll(small, 1, axis=1))[8:-8, 8:-8] * np.float32(gain / 2)
    return (
        np.clip(cv2.resize(side, (width, height)), -1, 1),
        np.clip(cv2.resize(up, (width, height)), -1, 1),
    )


def _painted(canvas: Canvas, car: Car, light: Light, area: tuple[slice, slice], share: Floats) -> Shade:
    """The paint of the body: what it reflects, brighter where it turns up, darker where it turns away."""
    side, up = _roundness(share, 0.075 * canvas.pixels_per_metre)
    sill = car.place(0, car.style.sill)[1]
    crease = car.crease

    def shade(x: Floats, y: Floats) -> Floats:
        a, b, c = (np.float32(phase) for phase in car.wobble)
        wave = 0.012 * np.sin(2.1 * x + a) + 0.008 * np.sin(4.7 * x + b) + 0.004 * np.sin(11 * x + c)
        t = (y - np.float32(sill)) / (_belt(car, x) - np.float32(sill))
        # The shoulder is a pressed edge: reflections stay straight there
        bent = t + 2.2 * wave * np.clip(1.6 * (1 - t), 0, 1)
        matte = _table(
            [(-0.2, 0.30), (0.0, 0.40), (crease - 0.03, 0.56), (crease, 0.72), (crease + 0.02, 0.70),
             (0.55, 0.74), (0.72, 0.80), (0.88, 0.88), (0.955, 0.84), (0.985, 1.06), (1.02, 1.04),
             (1.06, 0.96), (1.5, 1.02), (1.9, 1.1)],
            t, -0.2, 1.9,
        )  # fmt: skip
        mirror = _table(
            [(-0.2, 0.0), (0.1, 0.02), (0.3, 0.06), (0.47, 0.1), (0.525, 0.12), (0.55, 0.44), (0.70, 0.62),
             (0.90, 0.74), (0.95, 0.45), (0.98, 1.5), (1.015, 1.3), (1.05, 0.55), (1.5, 0.7), (1.9, 0.9)],
            bent, -0.2, 1.9,
        )  # fmt: skip
        band = _table([(0.36, 0.0), (0.44, 1.0), (0.54, 1.0), (0.58, 0.0)], bent, 0.3, 0.7)
        sky = np.clip(mirror + 0.8 * np.maximum(up, 0), 0, 1.6)
        lit = (
            matte * (1 - 0.30 * np.abs(side))
            + 0.14 * np.maximum(up, 0)
            - 0.35 * np.maximum(-up, 0) * (t < 0.5)
        )
        lit *= 1 - np.float32(light.horizon * 0.22) * band
        lit *= 1 + 0.05 * np.sin(0.9 * x + b)  # the light is not even along the car
        ground = np.clip(0.56 - t, 0, 0.36) * 0.85
        colour = np.array(car.paint, np.float32) * (lit * np.float32(light.power))[..., None]
        # A dark paint shows its reflections, a light one drowns them.
        gloss = np.float32(car.gloss * (0.40 - 0.24 * max(car.paint)) * light.power)
        colour += (sky * gloss)[..., None] * np.array(light.sky, np.float32)
        colour += (ground * gloss)[..., None] * np.array(light.ground, np.float32)
        result: Floats = np.clip(colour, 0, 1)
        return result

    return shade


def _plastic(light: Light) -> Rgb:
    level = 0.07 + 0.035 * light.power
    return (level, level, level * 1.03)


def _extras(canvas: Canvas, car: Car) -> None:
    """What sticks out of the body and counts as car: underbody, aerial fin, roof rails, exhaust."""
    style, dark = car.style, (0.02, 0.02, 0.022)
    rear, front = car.axles
    sill = car.place(0, style.sill)[1]
    low = sill * 0.62
    canvas.put(
        smooth([(rear - 0.5, sill, 0.1), (rear, low), (front, low), (front + 0.5, sill, 0.1)]), dark, new=True
    )
    pipe_y = car.place(0, style.outline[0][1])[1]
    canvas.put(box(0.09, pipe_y - 0.004, 0.22, pipe_y + 0.06, 0.3), (0.42, 0.42, 0.43), new=True)
    if style.rails:
        start, end = (car.place(x, 0)[0] for x in style.rails)
        high = car.place(0, style.top)[1] + 0.045
        rail = line(
            [
                (start, high - 0.10),
                (start + 0.10, high),
                (0.5 * (start + end), high + 0.015),
                (end - 0.1, high),
                (end, high - 0.10),
            ]
        )
        canvas.put(stroke(rail, 0.032), (0.16, 0.16, 0.17), new=True)
    elif style.name not in ("pickup", "van"):
        x = style.glass[0][0][0] + 0.42
        x, y = car.place(x, style.top)
        if style.name in ("hatchback", "minivan"):
            canvas.put(
                smooth([(x - 0.05, y + 0.06, 0.2), (x + 0.18, y - 0.04, 0.1), (x - 0.08, y - 0.04, 0.1)]),
                (0.05, 0.05, 0.05),
                new=True,
            )


def _sills(canvas: Canvas, car: Car, plastic: Rgb) -> None:
    """Sills and the lower bumpers; of a rugged car also the wheel arches."""
    rear, front = car.axles
    sill = car.place(0, car.style.sill)[1]
    length = car.length
    if car.style.rugged:
        for axle in car.axles:
            canvas.put(ellipse(axle, car.radius, car.radius * 1.34), plastic)
        canvas.put(box(rear, sill - 0.2, front, sill + 0.07), plastic)
        canvas.put(
            smooth([(-0.1, 0.2, 0), (-0.1, sill + 0.22, 0.1), (0.5, sill + 0.10, 0.2), (0.7, 0.2, 0)]),
            plastic,
        )
        canvas.put(
            smooth(
                [
                    (length + 0.1, 0.2, 0),
                    (length + 0.1, sill + 0.2, 0.1),
                    (length - 0.45, sill + 0.08, 0.2),
                    (length - 0.7, 0.2, 0),
                ]
            ),
            plastic,
        )
    else:
        canvas.put(box(rear, sill - 0.2, front, sill - 0.01), (0.03, 0.03, 0.032), opacity=0.55, blur=0.012)
        canvas.put(
            smooth(
                [
                    (length + 0.1, 0.1, 0),
                    (length + 0.1, sill + 0.06, 0.2),
                    (length - 0.25, sill + 0.04),
                    (length - 0.6, 0.1, 0),
                ]
            ),
            plastic,
        )
        canvas.put(
            smooth([(-0.1, 0.1, 0), (-0.1, sill + 0.05, 0.2), (0.3, sill + 0.03), (0.5, 0.1, 0)]), plastic
        )


def _trim(canvas: Canvas, car: Car, light: Light) -> None:
    """Sills, bumpers with their openings, number plates and the fuel flap."""
    _sills(canvas, car, _plastic(light))
    style, length = car.style, car.length
    rear, front = car.axles
    sill = car.place(0, style.sill)[1]
    gap = (0.02, 0.02, 0.02)
    # The gaps between the bumpers and the wings.
    tail = car.place(0, style.tail[1][1])[1]
    head_x, head_y = car.place(style.head[0][0], style.head[0][1])
    canvas.trace(
        line([(-0.05, tail - 0.04), (0.3, tail - 0.05), (rear - car.radius * 1.1, car.radius * 1.5)]),
        0.009,
        gap,
        opacity=0.75,
    )
    canvas.trace(
        line(
            [(head_x, head_y), (head_x - 0.02, head_y - 0.1), (front + car.radius * 1.08, car.radius * 1.4)]
        ),
        0.009,
        gap,
        opacity=0.75,
    )
    # The openings of the grille and of the bumper, seen from the side.
    canvas.put(
        smooth(
            [
                (length + 0.1, head_y + 0.02, 0),
                (length - 0.055, head_y - 0.03, 0.2),
                (length - 0.045, head_y - 0.14, 0.2),
                (length + 0.1, head_y - 0.16, 0),
            ]
        ),
        (0.03, 0.03, 0.033),
    )
    canvas.put(
        smooth(
            [
                (length - 0.14, sill + 0.13),
                (length - 0.40, sill + 0.10),
                (length - 0.30, sill + 0.19),
                (length - 0.12, sill + 0.2),
            ]
        ),
        (0.03, 0.03, 0.033),
        opacity=0.9,
    )
    # Number plates, seen from their edges.
    canvas.put(box(length - 0.025, sill + 0.16, length + 0.1, sill + 0.27), (0.78, 0.78, 0.76))
    # The fuel flap.
    if not car.flap:
        return
    x, y = rear - 0.02, car.place(0, style.belt[0])[1] * 0.5 + (car.radius * 2.2) * 0.5 + 0.03
    flap = box(x - 0.085, y - 0.075, x + 0.085, y + 0.075, 0.25)
    canvas.trace(np.concatenate([flap, flap[:2]]), 0.007, gap, opacity=0.5)


def _glass(canvas: Canvas, car: Car, light: Light) -> None:
    """Side windows with the cabin behind them, reflections, pillars and frames, and some windscreen."""
    style = car.style
    rear_belt = car.place(0, style.belt[0])[1]
    top = car.place(0, style.top)[1]
    low, high = (car.place(x, 0)[0] for x in (style.pillars[0][:2] if style.pillars else (0.0, 0.0)))
    behind = np.array(light.behind, np.float32)
    sky = np.array(light.sky, np.float32)

    def shade(x: Floats, y: Floats) -> Floats:
        q = np.clip((y - np.float32(rear_belt)) / np.float32(top - rear_belt), 0, 1)
        clear = np.where(x < low + (high - low) * q, np.float32(0.42 * (1 - car.tint)), np.float32(0.40))
        slant = 0.5 + 0.5 * np.sin((x + 0.8 * y) * 3.1 + np.float32(car.wobble[0]))
        shine = 0.05 + 0.16 * q * q + 0.08 * ramp(slant, 0.55, 0.75) * q
        result: Floats = 0.025 + behind * (clear * (0.55 + 0.45 * q))[..., None] + sky * shine[..., None]
        return result

    canvas.put(smooth(car.shape(style.screen)), shade)
    for outline in style.glass:
        window = smooth(car.shape(outline), 14)
        found = canvas.cover([window])
        if found is None:
            continue
        area, share = found
        frame = (0.62, 0.63, 0.64) if car.chrome else (0.025, 0.025, 0.028)
        closed = np.concatenate([window, window[:2]])
        canvas.trace(closed, 0.055, frame)
        canvas.mix(area, share, shade)
        _cabin(canvas, car, share, area)
        for bottom, up, width in style.pillars:
            (x0, _), (x1, _) = car.place(bottom, 0), car.place(up, 0)
            bar = np.array([(x0, rear_belt - 0.2), (x1, top)])
            part = canvas.cover([stroke(bar, width)])
            if part is not None:
                canvas.mix(part[0], part[1] * _within(canvas, share, area, part[0]), (0.03, 0.03, 0.033))
        canvas.trace(closed, 0.016, (0.03, 0.03, 0.03))


def _within(canvas: Canvas, share: Floats, area: tuple[slice, slice], part: tuple[slice, slice]) -> Floats:
    """`share`, known for `area`, over another area of the canvas; 0 outside."""
    full = np.zeros((part[0].stop - part[0].start, part[1].stop - part[1].start), np.float32)
    top, bottom = max(area[0].start, part[0].start), min(area[0].stop, part[0].stop)
    left, right = max(area[1].start, part[1].start), min(area[1].stop, part[1].stop)
    if top < bottom and left < right:
        full[top - part[0].start : bottom - part[0].start, left - part[1].start : right - part[1].start] = (
            share[top - area[0].start : bottom - area[0].start, left - area[1].start : right - area[1].start]
        )
    return full


def _cabin(canvas: Canvas, car: Car, share: Floats, area: tuple[slice, slice]) -> None:
    """Seats, head rests and the steering wheel, dimly through the glass."""
    style = car.style
    belt = car.place(0, style.belt[1])[1]
    roof = min(car.place(0, style.top)[1] - belt, 0.52)  # people are no taller in a taller car
    front = car.place(style.doors[-1], 0)[0]
    dark = (0.03, 0.03, 0.035)
    seats = [front - 1.0] + ([front - 1.95] if len(style.pillars) > 1 else [])
    for seat in seats:
        back = smooth(
            [
                (seat - 0.16, belt - 0.2, 0),
                (seat - 0.22, belt + 0.50 * roof, 0.3),
                (seat - 0.02, belt + 0.50 * roof, 0.3),
                (seat + 0.12, belt - 0.2, 0),
            ]
        )
        head = smooth(
            [
                (seat - 0.22, belt + 0.46 * roof),
                (seat - 0.25, belt + 0.74 * roof),
                (seat - 0.06, belt + 0.74 * roof),
                (seat - 0.06, belt + 0.46 * roof),
            ]
        )
        for shape in (back, head):
            part = canvas.cover([shape], 0.006)
            if part is not None:
                canvas.mix(part[0], part[1] * _within(canvas, share, area, part[0]) * np.float32(0.75), dark)
    wheel = stroke(
        line(
            [
                (front - 0.50, belt - 0.1),
                (front - 0.44, belt + 0.06),
                (front - 0.56, belt + 0.16),
                (front - 0.60, belt + 0.20),
            ]
        ),
        0.035,
    )
    part = canvas.cover([wheel], 0.006)
    if part is not None:
        canvas.mix(part[0], part[1] * _within(canvas, share, area, part[0]) * np.float32(0.8), dark)


def _doors(canvas: Canvas, car: Car) -> None:
    """Door gaps, handles and the highlight of the lower crease."""
    style = car.style
    gap = (0.015, 0.015, 0.017)
    sill = car.place(0, style.sill)[1]
    rear, front = car.axles
    reach = car.radius * 1.22

    def belt(x: float) -> float:
        return float(_belt(car, np.array(x, np.float32)))

    for index, drawn in enumerate(style.doors):
        x = car.place(drawn, 0)[0]
        top, low = belt(x) + 0.02, sill + 0.02
        if index == 0 and x - rear < reach * 1.3:  # the rear door follows the wheel arch
            path = line(
                [
                    (x, top),
                    (x - 0.02, car.radius * 1.9),
                    (rear + reach, car.radius * 1.25),
                    (rear + reach + 0.14, low + 0.02),
                    (rear + reach + 0.22, low),
                ]
            )
        elif index == len(style.doors) - 1:
            path = line([(x, top), (x + 0.03, 0.7 * top), (x + 0.02, low + 0.12), (x - 0.06, low)])
        else:
            path = line([(x, top), (x + 0.01, 0.5 * top), (x, low)])
        canvas.trace(path, 0.010, gap, opacity=0.9)
        canvas.trace(path - (0.012, 0.0), 0.007, (1.0, 1.0, 1.0), opacity=0.05 + 0.09 * max(car.paint))
    first, last = car.place(style.doors[0], 0)[0], car.place(style.doors[-1], 0)[0]
    start = max(first, rear + reach + 0.22)
    canvas.trace(np.array([(start, sill + 0.02), (last - 0.06, sill + 0.02)]), 0.010, gap, opacity=0.8)
    crease = [
        (x, sill + car.crease * (belt(x) - sill) + 0.02)
        for x in (rear + reach * 1.1, 0.5 * (rear + front), front - reach * 1.1)
    ]
    (x0, y0), (x1, y1), (x2, y2) = crease
    edge = smooth([(x0, y0, 0), (x1, y1 + 0.026, 0.45), (x2, y2, 0), (x1, y1 - 0.008, 0.45)])
    canvas.put(edge - (0.0, 0.030), (0.0, 0.0, 0.0), opacity=0.24, blur=0.010)
    canvas.put(edge, (1.0, 1.0, 1.0), opacity=0.10 + 0.12 * max(car.paint), blur=0.004)
    for drawn in style.doors[:-1] if style.name != "van" else style.doors[1:-1]:
        x = car.place(drawn, 0)[0] + 0.13
        y = belt(x) - 0.115
        canvas.put(box(x - 0.01, y - 0.035, x + 0.20, y + 0.022, 0.4), (0, 0, 0), opacity=0.28, blur=0.012)
        canvas.put(
            box(x, y - 0.014, x + 0.19, y + 0.022, 0.4), (0.62, 0.62, 0.63) if car.chrome else car.paint
        )
        canvas.put(box(x + 0.01, y + 0.008, x + 0.18, y + 0.018, 0.4), (1.0, 1.0, 1.0), opacity=0.45)


def _lamps(canvas: Canvas, car: Car) -> None:
    """Head and tail lights."""
    style = car.style
    head = smooth(car.shape(style.head))
    low, high = head[:, 1].min(), head[:, 1].max()
    left = head[:, 0].min()

    def lens(x: Floats, y: Floats) -> Floats:
        t = np.clip((y - np.float32(low)) / np.float32(high - low), 0, 1)
        level = 0.30 + 0.45 * t + 0.18 * ramp(np.sin((x - np.float32(left)) * 32), 0.2, 0.9)
        return np.stack([level, level * 1.01, level * 1.03], axis=-1)

    canvas.trace(np.concatenate([head, head[:2]]), 0.022, (0.04, 0.04, 0.045))
    canvas.put(head, lens)
    x, y = left + 0.2, 0.5 * (low + high)
    canvas.put(ellipse(x, y, 0.042), (0.12, 0.12, 0.13), opacity=0.8)
    canvas.put(ellipse(x, y, 0.030), (0.9, 0.92, 0.95), opacity=0.9)
    tail = smooth(car.shape(style.tail))
    low, high = tail[:, 1].min(), tail[:, 1].max()

    def red(x: Floats, y: Floats) -> Floats:
        t = np.clip((y - np.float32(low)) / np.float32(high - low), 0, 1)
        level = 0.34 + 0.30 * t + 0.10 * (np.abs(t - 0.45) < 0.10)
        return np.stack([level, level * 0.07, level * 0.07], axis=-1)

    canvas.trace(np.concatenate([tail, tail[:2]]), 0.018, (0.05, 0.01, 0.01))
    canvas.put(tail, red)
    centre = tail.mean(axis=0)
    canvas.put(
        box(centre[0] - 0.05, high - 0.055, tail[:, 0].max() - 0.05, high - 0.03, 0.3),
        (1.0, 0.75, 0.7),
        opacity=0.55,
        blur=0.004,
    )


def _mirror(canvas: Canvas, car: Car, light: Light) -> None:
    """The door mirror, with its foot and the shadow it throws."""
    x, y = car.place(*car.style.mirror)
    shell = smooth(
        [
            (x - 0.11, y - 0.02),
            (x - 0.12, y + 0.13),
            (x + 0.10, y + 0.13),
            (x + 0.15, y + 0.02),
            (x + 0.02, y - 0.03),
        ]
    )
    canvas.put(shell - (0.01, 0.03), (0, 0, 0), opacity=0.35, blur=0.02)
    canvas.put(box(x - 0.03, y - 0.07, x + 0.05, y + 0.02), (0.03, 0.03, 0.03))
    paint = np.array(car.paint, np.float32)
    sky = np.array(light.sky, np.float32)

    def shade(u: Floats, v: Floats) -> Floats:
        t = np.clip((v - np.float32(y - 0.03)) / np.float32(0.16), 0, 1)[..., None]
        return np.asarray(
            np.clip(paint * (0.45 + 0.6 * t) * np.float32(light.power) + sky * (0.02 + 0.18 * t * t), 0, 1)
        )

    canvas.put(shell, shade, new=True)
    canvas.put(box(x - 0.11, y - 0.01, x - 0.085, y + 0.1, 0.3), (0.06, 0.06, 0.06), opacity=0.8)
