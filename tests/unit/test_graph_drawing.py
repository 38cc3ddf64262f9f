"""Where the boxes and lines of a graph go."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from ttasks.datasette_plugin.graph_drawing import COMPACT_FROM, EDGES_MAX, Box, Drawing, Node, draw


def drawn(drawing: Drawing) -> dict[str, Box]:
    return {box.node.id: box for box in drawing.boxes}


@st.composite
def graphs(draw_: st.DrawFn) -> list[Node]:
    count = draw_(st.integers(0, 40))
    finallys = draw_(st.integers(0, min(count, 4)))
    nodes = []
    for number in range(count):
        is_finally = number >= count - finallys
        earlier = st.integers(0, number - 1) if number else st.nothing()
        after = draw_(st.lists(earlier, unique=True, max_size=4)) if number else []
        if not is_finally:
            after = [each for each in after if each < count - finallys]
        nodes.append(Node(str(number), f"task {number}", "pending", tuple(map(str, after)), is_finally))
    return draw_(st.permutations(nodes))


@given(graphs())
def test_every_task_is_right_of_what_it_depends_on_and_none_covers_another(nodes: list[Node]) -> None:
    drawing = draw(nodes)
    boxes = drawn(drawing)
    assert set(boxes) == {node.id for node in nodes}
    for node in nodes:
        box = boxes[node.id]
        assert box.x >= 0
        assert box.y >= 0
        assert box.x + box.width <= drawing.width
        assert box.y + box.height <= drawing.height
        for parent in node.after:
            assert boxes[parent].x + boxes[parent].width < box.x
        for other in nodes:
            if other.id > node.id:
                beside = boxes[other.id]
                is_apart_x = abs(beside.x - box.x) >= box.width
                is_apart_y = abs(beside.y - box.y) >= box.height - 1e-6
                assert is_apart_x or is_apart_y, (node.id, other.id)


@given(graphs())
def test_the_same_graph_is_drawn_the_same(nodes: list[Node]) -> None:
    assert draw(nodes) == draw(list(nodes))


@given(graphs())
def test_each_dependency_is_a_line_from_box_to_box(nodes: list[Node]) -> None:
    drawing = draw(nodes)
    boxes = drawn(drawing)
    begins = re.findall(r"M([-\d.e+]+) ([-\d.e+]+)", drawing.edges + drawing.critical_edges)
    wanted = sorted((boxes[parent].x + boxes[parent].width) for node in nodes for parent in node.after)
    assert sorted(float(x) for x, _ in begins) == wanted


def test_a_chain_lies_on_one_line() -> None:
    nodes = [Node(str(n), "t", "pending", (str(n - 1),) if n else ()) for n in range(5)]
    assert len({round(box.y, 3) for box in draw(nodes).boxes}) == 1


def test_a_line_goes_around_the_tasks_that_it_passes() -> None:
    a, b = Node("a", "a", "pending"), Node("b", "b", "pending", ("a",))
    c = Node("c", "c", "pending", ("a", "b"))
    drawing = draw([a, b, c])
    boxes = drawn(drawing)
    (passing,) = [float(y) for y in re.findall(r"C[^MC]* ([-\d.]+)H", drawing.edges)]
    middle = boxes["b"]
    assert not middle.y < passing < middle.y + middle.height


def test_finally_tasks_are_behind_a_border_after_all_others() -> None:
    nodes = [Node("a", "a", "pending"), Node("b", "b", "pending", ("a",)), Node("f", "f", "pending", ("a",), True)]
    drawing = draw(nodes)
    boxes = drawn(drawing)
    assert drawing.finally_x is not None
    assert boxes["b"].x + boxes["b"].width < drawing.finally_x < boxes["f"].x
    assert draw(nodes[:2]).finally_x is None
    assert draw([Node("f", "f", "pending", (), True)]).finally_x is None


def test_critical_lines_are_drawn_apart() -> None:
    nodes = [Node("a", "a", "succeeded", (), is_critical=True), Node("b", "b", "succeeded", ("a",), is_critical=True)]
    drawing = draw([*nodes, Node("c", "c", "succeeded", ("a",))])
    assert drawing.edges.count("M") == drawing.critical_edges.count("M") == 1


def test_many_tasks_are_drawn_as_icons_in_columns_of_bounded_height() -> None:
    split = Node("split", "split", "pending")
    parts = [Node(str(n), f"part {n}", "pending", ("split",)) for n in range(1000)]
    drawing = draw([split, *parts])
    assert len(parts) > COMPACT_FROM
    assert drawing.is_compact
    assert all(box.text == "" for box in drawing.boxes)
    assert drawing.height < 800
    assert drawing.width < 2000


def test_labels_are_cut_to_the_room_there_is_also_wide_ones() -> None:
    long, wide = draw([Node("a", "x" * 100, "pending")]).boxes[0], draw([Node("a", "漢" * 100, "pending")]).boxes[0]
    assert long.text.endswith("…")
    assert len(long.text) == 18
    assert len(wide.text) <= 10


def test_what_is_too_many_lines_is_left_out_and_counted() -> None:
    left = [Node(f"l{n}", "l", "pending") for n in range(150)]
    right = [Node(f"r{n}", "r", "pending", tuple(node.id for node in left)) for n in range(150)]
    drawing = draw([*left, *right])
    assert drawing.edges.count("M") == EDGES_MAX
    assert drawing.edges_left_out == 150 * 150 - EDGES_MAX


def test_a_dependency_outside_of_the_graph_is_no_line() -> None:
    assert draw([Node("a", "a", "pending", ("gone",))]).edges == ""


def test_nothing_is_drawn_of_nothing() -> None:
    assert draw([]).boxes == []
