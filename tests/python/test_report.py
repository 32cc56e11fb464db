"""Report: totals, grouping, text, JSON round trip, and a page that stands alone and parses."""

import io
import json
import re
from html.parser import HTMLParser

import pytest

from tamis.errors import TamisFileError, TamisValueError
from tamis.report import LayerReport, Report, Variant, host_facts
from tamis.report_text import collapse, layer_rows, megabytes, milliseconds, table


def layer(name="model.layers.0.mlp.up_proj", **changes):
    values = {
        "shape": (128, 64), "sparsity": 0.5, "format": "bitmap bf16", "nbytes": 9216,
        "dense_nbytes": 16384, "kernel": "spmm_bitmap_bf16_bf16_avx2", "measured_ms": 0.25,
        "dense_ms": 0.5, "reason": "0.25 ms beats dense 0.50 ms",
    }  # fmt: skip
    return LayerReport(name, **{**values, **changes})


@pytest.fixture
def report():
    layers = [
        layer(f"model.layers.{i}.mlp.{kind}", measured_ms=0.1 * (i + 1), reason=f"took {i}.5 ms")
        for i in range(3)
        for kind in ("up_proj", "down_proj")
    ]
    head = layer(
        "lm_head", shape=(1000, 64), sparsity=0.0, format="dense bf16", nbytes=128000,
        dense_nbytes=128000, kernel="", measured_ms=None, dense_ms=None, reason="ignored <lm_head>",
    )  # fmt: skip
    variants = [
        Variant("dense", 29.6, 10.0, 1.0, 1000, 900, 5000, "a & b"),
        Variant("pruned", 63.1, 15.0, 1.5, 600, 500, 4000, "<script>alert(1)</script>"),
    ]
    return Report("Title <x>", [*layers, head], {"loss_s": 1.5}, {"isa": "avx2"}, variants)


def test_totals_add_up(report):
    assert report.nbytes == 6 * 9216 + 128000
    assert report.dense_nbytes == 6 * 16384 + 128000


def test_collapse_merges_layers_that_differ_in_index_only(report):
    rows = collapse(report.layers)
    assert [row.name for row in rows] == [
        "3 x model.layers.*.mlp.up_proj", "3 x model.layers.*.mlp.down_proj", "lm_head",
    ]  # fmt: skip
    assert rows[0].nbytes == 3 * 9216
    assert rows[0].measured_ms == pytest.approx(0.2)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "dense bf16"},
        {"shape": (64, 64)},
        {"kernel": "other"},
        {"reason": "another reason"},
    ],
)
def test_collapse_keeps_apart_what_differs(change):
    rows = collapse([layer("a.0.q"), layer("a.1.q"), layer("a.2.q", **change)])
    assert sorted(row.name for row in rows) == ["2 x a.*.q", "a.2.q"]


def test_text_has_every_fact_once(report):
    out = io.StringIO()
    report.print(out)
    text = out.getvalue()
    assert text == str(report) + "\n"
    assert "3 x model.layers.*.mlp.up_proj" in text
    assert text.count("spmm_bitmap_bf16_bf16_avx2: took 0.5 ms") == 1
    assert "1.50x" in text
    assert "ignored <lm_head>" in text
    assert "isa avx2" in text
    assert "model.layers.2" not in text
    assert "model.layers.2.mlp.up_proj" in report.text(full=True)


def test_table_columns_line_up():
    text = table([["name", "MB"], ["a", "1.25"], ["longer", "10.50"]])
    assert text.splitlines() == ["name       MB", "------  -----", "a        1.25", "longer  10.50"]


def test_columns_that_nobody_fills_are_left_out():
    head = layer_rows([layer(measured_ms=None, dense_ms=None)])[0]
    assert "measured" not in head
    assert "memory limit" not in head


def test_empty_report_prints_its_title():
    assert str(Report("nothing")) == "nothing"


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (0, "0"), (1500, "1.5 kB"), (269_060_552, "269.1 MB")]
)
def test_megabytes(value, text):
    assert megabytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (0.0, "0"), (0.1234, "0.123 ms"), (12.34, "12.3 ms")]
)
def test_milliseconds(value, text):
    assert milliseconds(value) == text


def test_json_round_trip(report, tmp_path):
    report.parts.append(Report("part", [layer()]))
    report.to_json(tmp_path / "deep" / "r.json")
    data = json.loads((tmp_path / "deep" / "r.json").read_text())
    assert Report.from_dict(data) == report


@pytest.mark.parametrize(
    "change", [{"schema_version": 99}, {"layers": [{"name": "x"}]}, {"layers": [{"shape": 3}]}]
)
def test_from_dict_refuses_what_is_not_a_report(report, change):
    with pytest.raises(TamisValueError, match="from_dict"):
        Report.from_dict({**report.to_dict(), **change})
    with pytest.raises(TamisValueError, match="title"):
        Report.from_dict({})


def test_unwritable_path_is_one_sentence(report, tmp_path):
    (tmp_path / "file").write_text("")
    for write in (report.to_json, report.to_html):
        with pytest.raises(TamisFileError, match="choose another") as caught:
            write(tmp_path / "file" / "r")
        assert "\n" not in str(caught.value)


class Page(HTMLParser):
    """Tags with attributes, text, and a check that what opens closes."""

    VOID = ("meta", "br", "link", "img", "input", "rect", "line")

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_page_stands_alone_and_escapes(report, tmp_path):
    report.parts.append(Report("part", [layer()]))
    report.to_html(tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()
    page = Page(html)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "img", "iframe"}
    assert not re.search(r"https?:|@import|url\(", html)
    assert "<script>alert(1)</script>" in page.texts
    assert "ignored <lm_head>" in page.texts
    assert "prefers-color-scheme: dark" in html


def test_charts_show_one_bar_a_layer_to_scale(report, tmp_path):
    report.to_html(tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()
    charts = re.findall(r"<svg role=\"img\".*?</svg>", html, re.DOTALL)
    labels = [re.search(r'aria-label="([^:"]+)', chart).group(1) for chart in charts]
    assert labels == [
        "Tokens a second", "Bytes of the linear layers (MB)", "Bytes of each layer",
        "Time of one token through each layer", "Sparsity of each layer",
    ]  # fmt: skip
    heights = dict.fromkeys(("now", "dense"), None)
    for kind in heights:
        found = re.findall(rf'<rect class="{kind}"[^>]* height="([\d.]+)"', charts[2])
        assert len(found) == 6  # lm_head, left dense and 8 times larger, is named but not drawn
        heights[kind] = float(found[0])
    assert heights["now"] / heights["dense"] == pytest.approx(9216 / 16384, rel=1e-3)
    assert "too large for the scale of the charts: lm_head" in html
    widths = re.findall(r'width="([\d.]+)" height="20"', charts[0])
    assert float(widths[0]) / float(widths[1]) == pytest.approx(10 / 15, rel=1e-3)


def test_host_facts_name_versions_and_extras():
    facts = host_facts(seed=3)
    assert facts["seed"] == "3"
    assert {"tamis", "python", "cpu", "isa"} <= set(facts)
