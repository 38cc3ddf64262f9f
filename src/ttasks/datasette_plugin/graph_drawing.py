"""Where the boxes and lines of a graph go: layers from left to right, by the longest way that leads to each task.

It is the method of Sugiyama, Tagawa and Toda (1981) without the steps that small drawings don't need: layers, a few
sweeps that put each task near its neighbours (barycentres), and heights that keep lines straight where there is room.
A line that passes layers goes through a place of its own in each, so that it leads around tasks, not behind them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import pairwise
from typing import Final

from rich.text import Text

COMPACT_FROM: Final = 150
"""From how many tasks on they are drawn as their icons alone."""
EDGES_MAX: Final = 20_000
SWEEPS: Final = 6
PLACES_MAX: Final = 3_000
"""From how many places of passing lines on they go straight: a drawing that dense can't be followed anyway."""
MARGIN: Final = 16
HEADING: Final = 22
"""The height left above the tasks for the words over the finally tasks."""


@dataclass(frozen=True)
class Node:
    """A task to be drawn, and the ids of the tasks it depends on."""

    id: str
    label: str
    status: str
    after: tuple[str, ...] = ()
    is_finally: bool = False
    is_optional: bool = False
    is_critical: bool = False


@dataclass(frozen=True)
class Box:
    """Where a task is drawn. `text` is as much of its label as has room."""

    node: Node
    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True)
class Drawing:
    """A graph with coordinates in pixels. `edges` and `critical_edges` are the data of an SVG path each.

    `finally_x` is where the finally tasks begin (None: there are none, or nothing else), `edges_left_out` how many
    lines are too many to be drawn.
    """

    width: float
    height: float
    boxes: Sequence[Box]
    edges: str
    critical_edges: str
    finally_x: float | None
    is_compact: bool
    edges_left_out: int


@dataclass(frozen=True)
class _Sizes:
    width: float
    height: float
    column_gap: float
    row_gap: float
    rows_max: int
    sub_gap: float
    label_cells: int


_FULL: Final = _Sizes(168, 34, 56, 12, 16, 28, 18)
_COMPACT: Final = _Sizes(16, 16, 56, 6, 25, 6, 0)


@dataclass(frozen=True)
class _Place:
    """Where something is in its layer: a task, or a line that passes it (`node` is None). `before` are the places in
    the layers to the left that lead here."""

    id: str
    node: Node | None
    before: tuple[str, ...]


@dataclass(frozen=True)
class _Column:
    """Places one above the other; `is_of_several`: it is a part of its layer."""

    x: float
    places: Sequence[_Place]
    is_of_several: bool


def draw(nodes: Sequence[Node]) -> Drawing:
    """Return where to draw each task; the same tasks always go to the same places."""
    is_compact = len(nodes) > COMPACT_FROM
    sizes = _COMPACT if is_compact else _FULL
    layers, ways = _with_passing_lines(_layers(nodes), sizes)
    columns = _columns(_ordered(layers), sizes)
    middles = _middles(columns, sizes)
    top = min(middles.values(), default=0) - sizes.height / 2 - HEADING - MARGIN
    boxes = {
        place.node.id: Box(
            place.node, column.x, middles[place.id] - sizes.height / 2 - top, sizes.width, sizes.height,
            _cut(place.node.label, sizes.label_cells),
        )
        for column in columns for place in column.places if place.node is not None
    }  # fmt: skip
    points = {
        place.id: (column.x, middles[place.id] - top)
        for column in columns
        for place in column.places
        if place.node is None
    }
    edges, critical, left_out = _edges(nodes, boxes, ways, points, sizes)
    is_split = any(node.is_finally for node in nodes) and any(not node.is_finally for node in nodes)
    begins = min((boxes[node.id].x for node in nodes if node.is_finally), default=0)
    bottom = max([*(box.y + box.height for box in boxes.values()), *(y for _, y in points.values())], default=0)
    return Drawing(
        width=max((box.x for box in boxes.values()), default=0) + sizes.width + MARGIN,
        height=round(bottom + MARGIN, 1),
        boxes=[boxes[node.id] for node in nodes],
        edges=edges,
        critical_edges=critical,
        finally_x=begins - sizes.column_gap / 2 if is_split else None,
        is_compact=is_compact,
        edges_left_out=left_out,
    )


def _cut(label: str, cells: int) -> str:
    text = Text(label)
    text.truncate(cells, overflow="ellipsis")
    return text.plain if cells else ""


def _layers(nodes: Sequence[Node]) -> list[list[Node]]:
    """Return the tasks by layer; finally tasks come after all others, whatever they wait for."""
    layer_of: dict[str, int] = {}
    for node in _topological(nodes):
        if not node.is_finally:
            layer_of[node.id] = 1 + max((layer_of.get(parent, -1) for parent in node.after), default=-1)
    last = max(layer_of.values(), default=-1)
    for node in _topological(nodes):
        if node.is_finally:
            parents = [layer_of.get(parent, -1) for parent in node.after]
            layer_of[node.id] = 1 + max([last, *parents])
    layers: list[list[Node]] = [[] for _ in range(max(layer_of.values(), default=-1) + 1)]
    for node in nodes:
        layers[layer_of[node.id]].append(node)
    return [layer for layer in layers if layer]


def _topological(nodes: Sequence[Node]) -> list[Node]:
    """Return the tasks, each after what it depends on. The graph has no cycle: nothing else can be recorded."""
    by_id = {node.id: node for node in nodes}
    order = TopologicalSorter({node.id: node.after for node in nodes}).static_order()
    return [by_id[id_] for id_ in order if id_ in by_id]


def _with_passing_lines(
    layers: Sequence[Sequence[Node]], sizes: _Sizes
) -> tuple[list[list[_Place]], dict[tuple[str, str], list[str]]]:
    """Return the layers with places for the lines that pass them, and the places that each such line goes through."""
    layer_of = {node.id: number for number, layer in enumerate(layers) for node in layer}
    is_high = [len(layer) > sizes.rows_max for layer in layers]
    passing: list[list[_Place]] = [[] for _ in layers]
    ways: dict[tuple[str, str], list[str]] = {}
    before: dict[str, list[str]] = {}
    count = 0
    for layer in layers:
        for node in layer:
            for parent in node.after:
                if parent not in layer_of:
                    continue
                last = parent
                for number in range(layer_of[parent] + 1, layer_of[node.id]):
                    if is_high[number] or count >= PLACES_MAX:
                        continue
                    place = _Place(f"{parent} {node.id} {number}", None, (last,))
                    passing[number].append(place)
                    ways.setdefault((parent, node.id), []).append(place.id)
                    last, count = place.id, count + 1
                before.setdefault(node.id, []).append(last)
    placed = [[_Place(node.id, node, tuple(before.get(node.id, ()))) for node in layer] for layer in layers]
    return [[*tasks, *lines] for tasks, lines in zip(placed, passing, strict=True)], ways


def _ordered(layers: list[list[_Place]]) -> list[list[_Place]]:
    """Return the layers, each place near the middle of its neighbours, by sweeps from left to right and back."""
    left, right = _neighbours(layers)
    for sweep in range(SWEEPS):
        is_rightward = sweep % 2 == 0
        neighbours = left if is_rightward else right
        share: dict[str, float] = {}
        for layer in layers if is_rightward else layers[::-1]:
            shares = {place.id: (row + 0.5) / len(layer) for row, place in enumerate(layer)}
            near = {id_: [share[each] for each in neighbours[id_] if each in share] for id_ in shares}
            wanted = {id_: _mean(near[id_], shares[id_]) for id_ in shares}
            layer.sort(key=lambda place: wanted[place.id])
            share.update({place.id: (row + 0.5) / len(layer) for row, place in enumerate(layer)})
    return layers


def _neighbours(layers: Sequence[Sequence[_Place]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    left = {place.id: list(place.before) for layer in layers for place in layer}
    right: dict[str, list[str]] = {id_: [] for id_ in left}
    for id_, before in left.items():
        for each in before:
            right[each].append(id_)
    return left, right


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _columns(layers: Sequence[Sequence[_Place]], sizes: _Sizes) -> list[_Column]:
    """Return the columns from left to right; a layer with too many tasks for one is split over several."""
    columns: list[_Column] = []
    x: float = MARGIN
    for layer in layers:
        tasks = sum(place.node is not None for place in layer)
        count = -(-tasks // sizes.rows_max)
        rows = -(-len(layer) // count)
        for first in range(0, len(layer), rows):
            columns.append(_Column(x, layer[first : first + rows], count > 1))
            x += sizes.width + sizes.sub_gap
        x += sizes.column_gap - sizes.sub_gap
    return columns


def _middles(columns: Sequence[_Column], sizes: _Sizes) -> dict[str, float]:
    """Return the height of the middle of each place: as near to those of its neighbours as its column has room for."""
    left, right = _neighbours([column.places for column in columns])
    middles: dict[str, float] = {}
    for column in columns:
        offsets = _offsets(column.places, sizes)
        middles.update(
            {place.id: offset - offsets[-1] / 2 for place, offset in zip(column.places, offsets, strict=True)}
        )
    moved = [column.places for column in columns if not column.is_of_several]
    for sweep in range(SWEEPS):
        is_rightward = sweep % 2 == 0
        for places in moved if is_rightward else moved[::-1]:
            near = left if is_rightward else right
            wanted = [_mean([middles[each] for each in near[place.id]], middles[place.id]) for place in places]
            settled = _apart(wanted, _offsets(places, sizes))
            middles.update({place.id: middle for place, middle in zip(places, settled, strict=True)})
    return middles


def _offsets(column: Sequence[_Place], sizes: _Sizes) -> list[float]:
    """Return how far below the first each place is at the least."""
    offsets = [0.0]
    for above, below in pairwise(column):
        heights = [sizes.height if place.node is not None else 0 for place in (above, below)]
        offsets.append(offsets[-1] + sum(heights) / 2 + sizes.row_gap)
    return offsets


def _apart(wanted: Sequence[float], offsets: Sequence[float]) -> list[float]:
    """Return heights as near to those wanted as can be, by least squares, that are far enough apart.

    It is an isotonic regression, by pooling neighbours that would overlap (Ayer et al., 1955).
    """
    pools: list[tuple[float, int]] = []
    for height, offset in zip(wanted, offsets, strict=True):
        mean, count = height - offset, 1
        while pools and pools[-1][0] > mean:
            above, more = pools.pop()
            mean, count = (mean * count + above * more) / (count + more), count + more
        pools.append((mean, count))
    bases = [mean for mean, count in pools for _ in range(count)]
    return [base + offset for base, offset in zip(bases, offsets, strict=True)]


def _edges(
    nodes: Sequence[Node],
    boxes: Mapping[str, Box],
    ways: Mapping[tuple[str, str], Sequence[str]],
    points: Mapping[str, tuple[float, float]],
    sizes: _Sizes,
) -> tuple[str, str, int]:
    plain: list[str] = []
    critical: list[str] = []
    left_out = 0
    for node in nodes:
        for parent in node.after:
            if parent not in boxes:
                continue
            if len(plain) + len(critical) >= EDGES_MAX:
                left_out += 1
                continue
            passes = [points[id_] for id_ in ways.get((parent, node.id), ())]
            line = _line(boxes[parent], boxes[node.id], passes, sizes.width)
            is_critical = node.is_critical and boxes[parent].node.is_critical
            (critical if is_critical else plain).append(line)
    return "".join(plain), "".join(critical), left_out


def _line(parent: Box, child: Box, passes: Sequence[tuple[float, float]], width: float) -> str:
    x, y = parent.x + parent.width, parent.y + parent.height / 2
    line = f"M{x:.5g} {y:.5g}"
    for next_x, next_y, goes_on in [*((*place, width) for place in passes), (child.x, child.y + child.height / 2, 0.0)]:
        bend = max((next_x - x) / 2, 12)
        line += f"C{x + bend:.5g} {y:.5g} {next_x - bend:.5g} {next_y:.5g} {next_x:.5g} {next_y:.5g}"
        x, y = next_x + goes_on, next_y
        line += f"H{x:.5g}" if goes_on else ""
    return line
