"""Labels at the points of a plot: each beside its point, none over another label, a point or the panel's edge.

Places are tried around every point, near ones first; labels are set one after the other, then each is set again while
that betters the whole, from several orders, of which the best is kept. What finds no place is left to the legend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

DISTANCES = (6.0, 9.0, 13.0, 18.0, 24.0, 31.0, 39.0, 48.0, 60.0, 75.0, 95.0, 120.0)  # points, from mark to label
ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False)
LEADER, LEADER_COLOR = 10.0, "#858c94"  # distance from which a line leads to the mark; its colour shows on both papers
MARK, RING, GAP = 5.0, 9.0, 1.5  # half the width of a mark and of a strong one's ring, the room around a label: points
ROUNDS, ORDERS = 5, 6
MISSING, THROUGH_MARK, CROSSING, THROUGH_LABEL, NEARER, LINE = 1e4, 120.0, 60.0, 80.0, 25.0, 8.0  # beside the distance


@dataclass(frozen=True)
class Label:
    """What is written at a point, in data coordinates; strong ones are set first, in bold."""

    x: float
    y: float
    text: str
    is_strong: bool = False


@dataclass(frozen=True)
class Spots:
    """The places for one label: boxes (left, bottom, right, top), centres and costs, in points."""

    point: np.ndarray
    boxes: np.ndarray
    centers: np.ndarray
    costs: np.ndarray


def draw_labels(axis: Any, labels: Sequence[Label], font_size: float, lines: Sequence[Any] = (),
                marks: Sequence[tuple[float, float]] = ()) -> list[Label]:  # fmt: skip
    """Write labels into a panel whose limits are final; return those that found no place.

    Args: lines: arrays of (x, y) that labels had better not cover. marks: points beside the labels' own. All are in
        data coordinates.
    """
    if not labels:
        return []
    figure = axis.figure
    figure.draw_without_rendering()  # the layout must stand
    scale = 72 / figure.dpi
    style = [{"ha": "center", "va": "center", "fontsize": font_size, "zorder": 6, "linespacing": 1.2,
              "fontweight": "bold" if each.is_strong else "normal"} for each in labels]  # fmt: skip
    sizes = []
    for each, look in zip(labels, style, strict=True):
        text = axis.text(each.x, each.y, each.text, **look)
        sizes.append(np.array(text.get_window_extent().size) * scale)
        text.remove()
    points = axis.transData.transform([*((each.x, each.y) for each in labels), *marks]) * scale
    panel = np.array(axis.get_window_extent().extents) * scale
    strokes = [axis.transData.transform(line) * scale for line in lines if len(line) > 1]
    found = place(points, sizes, panel, [each.is_strong for each in labels], strokes)
    for label, look, size, point, center in zip(labels, style, sizes, points[: len(labels)], found, strict=True):
        if center is None:
            continue
        leader = {"arrowstyle": "-", "color": LEADER_COLOR, "lw": 0.7, "shrinkA": 0, "shrinkB": 3.5}
        apart = float(np.hypot(*np.maximum(np.abs(center - point) - size / 2, 0)))
        drawn = axis.annotate(label.text, (label.x, label.y), xytext=tuple(center - point), textcoords="offset points",
                              arrowprops=leader if apart >= LEADER else None, **look)  # fmt: skip
        drawn.set_in_layout(False)
    return [label for label, center in zip(labels, found, strict=True) if center is None]


def place(points: np.ndarray, sizes: Sequence[np.ndarray], panel: np.ndarray, strong: Sequence[bool],
          lines: Sequence[np.ndarray] = ()) -> list[np.ndarray | None]:  # fmt: skip
    """Return the centre of each label, None where no place is free.

    Args: points: of the labels' marks, then of others, shape (n, 2). sizes: of the labels. panel: (left, bottom,
        right, top). strong: whether a label is set before the others. lines: polylines that are better left free.
    """
    radii = np.array([RING if each else MARK for each in strong] + [MARK] * (len(points) - len(sizes)))
    spots = [_spots(i, points, radii, size, panel, lines) for i, size in enumerate(sizes)]
    random = np.random.default_rng(0)
    best: tuple[float, list[int]] = (np.inf, [])
    for _ in range(ORDERS):
        order = sorted(random.permutation(len(sizes)), key=lambda i: not strong[i])
        best = min(best, _settle(spots, [int(i) for i in order]), key=lambda each: each[0])
    return [spots[i].centers[k] if k >= 0 else None for i, k in enumerate(best[1])]


def _settle(spots: Sequence[Spots], order: Sequence[int]) -> tuple[float, list[int]]:
    """Return the cost of the whole, and the number of each label's place; -1: none."""
    chosen, price = [-1] * len(spots), [MISSING] * len(spots)
    for _ in range(ROUNDS):
        before = list(chosen)
        for i in order:
            costs = spots[i].costs.copy()
            for j, k in enumerate(chosen):
                if j != i and k >= 0:
                    costs += _beside(spots[i], spots[j], k)
            best = int(np.argmin(costs)) if len(costs) else -1
            is_free = best >= 0 and bool(np.isfinite(costs[best]))
            chosen[i], price[i] = (best, float(costs[best])) if is_free else (-1, MISSING)
        if chosen == before:
            break
    return sum(price), chosen


def _spots(own: int, points: np.ndarray, radii: np.ndarray, size: np.ndarray, panel: np.ndarray,
           lines: Sequence[np.ndarray]) -> Spots:  # fmt: skip
    """Return the places around a point that lie in the panel and on no mark, with what each costs by itself."""
    directions = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
    distances = np.repeat(DISTANCES, len(ANGLES))
    turned = np.tile(directions, (len(DISTANCES), 1))
    centers = points[own] + turned * (distances[:, None] + size / 2)
    boxes = np.concatenate([centers - size / 2, centers + size / 2], axis=1)
    gaps = np.maximum(np.abs(points[None] - centers[:, None]) - size / 2, 0)  # (places, marks, 2)
    away = np.hypot(gaps[..., 0], gaps[..., 1])
    free = (boxes[:, :2] >= panel[:2]).all(1) & (boxes[:, 2:] <= panel[2:]).all(1) & (away >= radii).all(1)
    centers, boxes, distances, away = centers[free], boxes[free], distances[free], away[free]
    costs = distances.copy()
    others = [number for number in range(len(points)) if number != own]
    for number in others:
        costs += NEARER * (away[:, number] < away[:, own])
        costs += THROUGH_MARK * (_from_stretch(points[number], points[own], centers) < MARK) * (distances >= LEADER)
    for line in lines:
        samples = np.concatenate([np.linspace(a, b, 24) for a, b in pairwise(line)])
        costs += LINE * _inside(samples[None], boxes[:, None]).any(1)
    return Spots(points[own], boxes, centers, costs)


def _beside(mine: Spots, other: Spots, k: int) -> np.ndarray:
    """Return what each place costs beside another label's place `k`: infinite over it."""
    box, center = other.boxes[k], other.centers[k]
    apart = (mine.boxes[:, :2] - GAP >= box[2:]).any(1) | (box[:2] - GAP >= mine.boxes[:, 2:]).any(1)
    along = np.linspace(0, 1, 10)[None, :, None]
    own_line = mine.point + along * (mine.centers - mine.point)[:, None]
    other_line = other.point + along * (center - other.point)
    through = _inside(own_line, box).any(1) * 1 + _inside(other_line, mine.boxes[:, None]).any(1)
    crossing = _crosses(mine.point, mine.centers, other.point, center)
    return np.where(apart, THROUGH_LABEL * through + CROSSING * crossing, np.inf)


def _inside(samples: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    return np.asarray(np.logical_and(samples > boxes[..., :2], samples < boxes[..., 2:]).all(-1))


def _from_stretch(point: np.ndarray, start: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return how far a point is from the stretches from `start` to each of `ends`."""
    along = ends - start
    share = np.clip(((point - start) * along).sum(1) / np.maximum((along**2).sum(1), 1e-9), 0, 1)
    return np.linalg.norm(point - start - share[:, None] * along, axis=1)


def _crosses(a: np.ndarray, ends: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return whether the stretches from a to each of `ends` cross that from c to d."""

    def side(p: np.ndarray, q: np.ndarray, r: np.ndarray) -> np.ndarray:
        return (q[..., 0] - p[..., 0]) * (r[..., 1] - p[..., 1]) - (q[..., 1] - p[..., 1]) * (r[..., 0] - p[..., 0])

    is_between = np.logical_and(side(a, ends, c) * side(a, ends, d) < 0, side(c, d, a) * side(c, d, ends) < 0)
    return np.asarray(is_between)
