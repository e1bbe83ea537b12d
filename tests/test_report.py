"""The report: its data has a fixed structure, the page is complete in itself, safe and small."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specc.compiler.report import render
from specc.compiler.report.charts import Line, Reference, line_chart, log_ticks, round_ticks, smooth, thin
from specc.compiler.report.layers import place
from specc.compiler.report.program import model_data
from specc.compiler.report.text import flops, number
from tests.report_sample import SIZES, program, report, stage

VOID = {"meta", "path", "circle", "rect"}


class Page(HTMLParser):
    """What a browser would see: every tag with its attributes, texts, and tags that are never closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(t == tag for t, _ in self.tags)


def test_the_data_of_a_program_is_frozen(golden: Callable[[str, str], None]) -> None:
    golden("report_model.json", json.dumps(model_data(program(), SIZES, tokens=16), indent=1) + "\n")


def test_figures_add_up() -> None:
    card = model_data(program(), SIZES, tokens=16)
    layer = 16 + 2 * 16 * 32
    assert card["params"] == 100 * 16 + 2 * layer
    assert card["trained"] == 100 * 16 + layer
    assert card["params"] == sum(b["params"] * b["times"] for b in card["blocks"])
    assert card["flops"] == pytest.approx(sum(b["flops"] * b["times"] for b in card["blocks"]))
    (mlp,) = (s for b in card["blocks"] for s in b["steps"] if s["steps"])
    assert [s["name"] for s in mlp["steps"]] == ["up", "gelu(up)", "down"]


def test_the_same_data_gives_the_same_page() -> None:
    assert render(report()) == render(report())


def test_a_report_survives_json() -> None:
    data = report()
    assert render(json.loads(json.dumps(data))) == render(data)


def test_the_page_needs_nothing_from_outside() -> None:
    page = Page(render(report()))
    links = [v for _, a in page.tags for k, v in a.items() if k in {"src", "href", "xlink:href", "data", "action"}]
    assert links
    assert all(v is not None and v.startswith("#") for v in links)
    assert "@import" not in render(report())
    assert not re.search(r"url\((?!#)", render(report()))
    assert {"link", "img", "iframe", "object", "embed"}.isdisjoint(t for t, _ in page.tags)


def test_only_its_own_script_may_run() -> None:
    text = render(report())
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (a["content"] for t, a in Page(text).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize(
    "hostile", ["<script>x</script>", "'><b onclick=x>", '"><img src=x>', "</title><p>", "&lt;b&gt;"]
)
def test_no_text_becomes_markup(hostile: str) -> None:
    plain, attacked = Page(render(report())), Page(render(report(hostile=hostile)))
    assert [t for t, _ in attacked.tags] == [t for t, _ in plain.tags]
    assert [sorted(a) for _, a in attacked.tags] == [sorted(a) for _, a in plain.tags]
    assert hostile in "".join(attacked.text)


def test_every_section_is_there_and_linked() -> None:
    page = Page(render(report()))
    ids = {a["id"] for t, a in page.tags if t == "section" and "id" in a}
    assert ids == {"stages", "training", "architecture", "memory", "schedule", "graphs", "kernels", "files"}
    assert {a["href"] for t, a in page.tags if t == "a"} == {f"#{i}" for i in ids}


def test_a_build_that_was_not_run_has_no_training_section() -> None:
    data = report()
    data["stages"] = [{**stage(), "status": "waiting", "steps_done": 0, "series": [], "samples": [], "notes": []}]
    page = Page(render(data))
    assert "training" not in {a.get("id") for _, a in page.tags}
    assert "not run yet" in page.text


def test_a_long_run_stays_below_a_megabyte() -> None:
    assert len(render(report(steps=50_000, microbatches=400)).encode()) < 1_000_000


def test_repeated_layers_are_drawn_once() -> None:
    text = "".join(Page(render(report())).text)
    assert text.count("×2") == 1
    assert "tied to embed.weight" in text


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[float], list[tuple[int, int]]]:
    n = draw(st.integers(1, 14))
    widths = draw(st.lists(st.floats(20, 200), min_size=n, max_size=n))
    pairs = [(a, b) for b in range(n) for a in range(b)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=25)) if pairs else []
    return widths, sorted(edges)


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_boxes_never_overlap_and_edges_point_down(graph: tuple[list[float], list[tuple[int, int]]]) -> None:
    widths, edges = graph
    at = place(widths, [40.0] * len(widths), edges)
    assert all(at.y[a] < at.y[b] for a, b in edges)
    for i, w in enumerate(widths):
        assert w / 2 - 1e-6 <= at.x[i] <= at.width - w / 2 + 1e-6
        for j in range(i):
            if at.y[i] == at.y[j]:
                assert abs(at.x[i] - at.x[j]) >= (w + widths[j]) / 2
    for (a, b), route in at.routes.items():
        assert route[0] == (at.x[a], at.y[a])
        assert route[-1] == (at.x[b], at.y[b])


def test_a_residual_block_has_a_straight_main_path() -> None:
    at = place([50, 90, 60, 70], [40.0] * 4, [(0, 1), (1, 2), (2, 3), (0, 3)])
    assert max(at.x) - min(at.x) < 1.0


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    if low + span == low:
        return
    ticks = round_ticks(low, low + span, 5)
    assert 1 <= len(ticks) <= 8
    assert all(low - 1e-6 * (abs(low) + span) <= t <= low + span + 1e-6 * (abs(low) + span) for t in ticks)


def test_log_ticks_are_powers_of_ten() -> None:
    assert log_ticks(0.5, 200) == pytest.approx([1, 10, 100])


def test_thinning_keeps_the_spikes() -> None:
    points = [(float(k), 1.0) for k in range(10_000)]
    points[5_000] = (5_000.0, 99.0)
    kept = thin(points)
    assert len(kept) <= 320
    assert (5_000.0, 99.0) in kept


def test_smoothing_starts_at_the_first_value() -> None:
    points = smooth([(float(k), 7.0) for k in range(500)])
    assert [y for _, y in points] == pytest.approx([7.0] * 500)


def test_a_loss_that_is_not_finite_leaves_a_gap() -> None:
    svg = line_chart("loss", [Line("train", [(0, 2.0), (1, math.nan), (2, math.inf), (3, 1.0)])], [Reference("e", 3.0)])
    assert "nan" not in svg
    assert "inf" not in svg


def test_numbers_are_readable() -> None:
    assert [flops(n) for n in (0, 12, 999, 1.52e8)] == ["0 FLOP", "12 FLOP", "999 FLOP", "152 MFLOP"]
    assert [number(y) for y in (0.0, 3e-4, 0.5, 12_345)] == ["0", "3e-4", "0.5", "12.3 K"]
