"""What the page says of a run, from manifests; the empty states too."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from airloop.contract import Interval
from airloop.report import page as pages
from tests import report_manifests as made

FEBRUARY = Interval.parse({"start": made.START, "end": made.END})
NEW_YORK = "America/New_York"


class Reader(HTMLParser):
    """Text by section, and every element."""

    def __init__(self) -> None:
        super().__init__()
        self.sections: dict[str, str] = {}
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._section = ""
        self._silent = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.elements.append((tag, found))
        self._silent = tag == "style"
        if tag == "section":
            self._section = found.get("id") or ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.sections[self._section] = " ".join((self.sections.get(self._section, "") + " " + data).split())


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


def shown(tasks: dict[str, Any], interval: Interval | None = FEBRUARY, **parts: Any) -> dict[str, str]:
    """Text of the page by section."""
    return read(pages.render(pages.describe("loop", "Flight delays", interval, tasks, NEW_YORK, **parts))).sections


def facts(tasks: dict[str, Any]) -> dict[str, str]:
    found = pages.describe("loop", "t", FEBRUARY, tasks, NEW_YORK)["facts"]
    return {f["name"]: f"{f['value']} {f['note']}".strip() for f in found}


def test_a_promotion_says_what_and_why() -> None:
    text = shown(made.loop())
    assert text["decision"].startswith("Promoted delay version 2 is the new champion Its ROC AUC is 0.0219 better")
    assert "95% interval +0.0050 to +0.0388, all of it above zero" in text["decision"]
    assert "ROC AUC 0.7273 against the champion's 0.7054" in text["decision"]


def test_key_figures() -> None:
    assert facts(made.loop()) == {
        "ROC AUC, challenger": "0.7273 champion 0.7054",
        # The planes came with an earlier run.
        "Rows in": "2,010 10 of them corrected",
        "Quarantined": "1 0.050% of 2,010 checked",
        "Training rows": "37,435 6,162 held out",
        "Drifted": "1 of 3 columns",
        "ROC AUC, live": "0.6716 0.7031 in validation",
    }


def test_every_section_tells_its_part() -> None:
    text = shown(made.loop())
    for section, parts in {
        "gate": ["6,162 held-out rows", "7 of them", "Log loss less is better", "at least 0.6", "ROC curve"],
        "drift": ["1 limit crossed", "1 of 3 columns no longer", "weather temp", "0.6716", "1,417 predictions"],
        "data": ["raw.weather", "added column gust (double)", "values to be between", "kept back", "wind_speed=1048.4"],
        "training": [
            "xgboost, best after 2 of 3 rounds",
            "49,000 feature values",
            "odd may give the label away, and was allowed: alone it ranks <all>.",
            "169 rows left out",
            "max_depth",
        ],
        "lineage": [
            "weather.csv 5d1e5d1e5d1e",
            "raw.weather 2",
            "features.weather 7",
            "model:/run/abc",
            "model:/delay/2",
        ],
        "tasks": ["11 tasks", "1.6 s", "by run scheduled__2013-02-01", "register-000"],
    }.items():
        for part in parts:
            assert part in text[section], section


def test_it_says_where_the_model_comes_from() -> None:
    text = shown(made.loop(), origin=made.origin())["lineage"]
    for part in (
        "Where this model comes from",
        "delay version 2 rests on 2 source files and 1 table, those of earlier runs included",
        f"flights.csv.zip 8.3 MB {'5d1e' * 16}",
        "raw.flights 51,955 2 7586999508291845574",
        "train 1 f2fdf2fdf2fd 38 Python 3.11.7, numpy 2.4.6, pyarrow 25.0.1",
    ):
        assert part in text
    assert "Where this model" not in shown(made.loop())["lineage"]


def test_the_first_run_has_no_champion_and_no_drift() -> None:
    first = made.decision(champion=False, reasons=["there is no champion yet to compare with"])
    drift = made.monitor(
        drift={"columns": [], "reason": "there was no delay model yet"},
        quality={"models": [], "unlabelled": 0, "reason": "no prediction got its label"},
        crossed=[],
    )
    tasks = made.loop(first) | {"register": made.registered(1, "1", previous=None), "monitor": drift}
    text = shown(tasks)
    assert "delay version 1 is the first champion There is no champion yet to compare with" in text["decision"]
    assert "The challenger alone" in text["gate"]
    assert "Champion" not in text["gate"].replace("champion", "")
    assert "Nothing to compare There was no delay model yet." in text["drift"]
    assert "No prediction got its label." in text["drift"]
    assert facts(tasks)["Drifted"].endswith("no model to compare with")
    assert pages.entry(pages.describe("l", "t", FEBRUARY, tasks), tasks, FEBRUARY)["champion"] is None


def test_a_held_out_set_of_one_class_is_explained() -> None:
    nothing = dict.fromkeys(made.METRICS)
    one = made.decision(
        "keep",
        challenger_metrics=nothing,
        champion_metrics=nothing,
        difference=None,
        slices=[],
        floors=[],
        reasons=["held-out rows cannot tell: all 6,162 rows are of one class, negative, so the champion stays"],
    )
    tasks = made.loop(one) | {"register": made.registered(2, "1")}
    text = shown(tasks)
    assert "Champion kept delay version 1 stays champion Held-out rows cannot tell" in text["decision"]
    assert facts(tasks)["ROC AUC, challenger"] == "\N{EN DASH} champion \N{EN DASH}"


@pytest.mark.parametrize(
    ("decision", "registered", "expected"),
    [
        (
            made.decision("keep", difference=made.difference(0.0219, -0.0139, 0.0576)),
            made.registered(2, "1"),
            "Champion kept delay version 1 stays champion The challenger's ROC AUC is 0.0219 better on the same 6,162 "
            "held-out rows, but that may be chance: the 95% interval \N{MINUS SIGN}0.0139 to +0.0576 holds zero.",
        ),
        (
            made.decision("keep", difference=made.difference(-0.01, -0.03, 0.01)),
            made.registered(2, "1"),
            "The challenger's ROC AUC is 0.0100 worse on the same 6,162 held-out rows",
        ),
        (
            made.decision("keep", slices=[made.slice_of("carrier", "UA", -0.2, "worse")]),
            made.registered(2, "1"),
            "but it loses more than is tolerated on carrier UA.",
        ),
        (
            made.decision("reject", difference=None, reasons=["the challenger breaks a floor: ece 0.3 > 0.15"]),
            made.registered(2, "1"),
            "Rejected The challenger is not fit to be used; delay version 1 stays champion The challenger breaks a "
            "floor: calibration error 0.3 > 0.15",
        ),
        (made.decision("keep", champion=False), made.registered(1, "none"), "Not promoted There is still no champion"),
        (
            made.decision("reject", champion=False),
            made.registered(1, "none"),
            "not fit to be used; there is still no champion",
        ),
        (made.decision(), made.registered(2, "3", state="superseded"), "Came too late delay version 2 passed, but"),
        (made.decision(), None, "The challenger passed the gate; it was not registered"),
        (made.decision("keep"), None, "The challenger was not promoted"),
    ],
)
def test_each_outcome_has_its_words(decision: dict[str, Any], registered: Any, expected: str) -> None:
    tasks = made.loop(decision)
    del tasks["register"]
    if registered:
        tasks["register"] = registered
    assert expected in shown(tasks)["decision"]


def test_a_loop_of_one_step_has_a_page() -> None:
    text = shown({"rows": made.manifest("own.step")}, None)
    assert "no interval" in text[""]
    assert "No decision" in text["decision"]
    assert set(text) == {"", "decision", "tasks"}


def test_tasks_without_a_result_are_named() -> None:
    tasks = made.loop()
    for name in ("gate", "register", "monitor"):
        del tasks[name]
    text = shown(tasks, absent=["gate", "register", "monitor"])
    assert "3 tasks of this run made nothing: gate, register, monitor." in text[""]
    assert "This run made no decision" in text["decision"]
    assert "gate no result" in text["tasks"]


def test_names_from_data_are_never_markup() -> None:
    hostile = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    tasks = json.loads(json.dumps(made.loop()).replace('"UA"', json.dumps(hostile)).replace("wind_speed", hostile))
    tasks["monitor"]["details"]["drift"]["columns"][0]["column"] = f"{hostile}__{hostile}"
    tasks["monitor"]["details"]["drift"]["columns"][0]["bins"][0]["bin"] = hostile
    tasks["train"]["details"]["parameters"] = {hostile: hostile}
    tasks["gate"]["details"]["decision"]["reasons"] = [hostile]
    tasks["weather.extract"]["details"]["files"][0]["name"] = hostile
    tasks[hostile] = made.manifest("sql", outputs={"table": f"{hostile}@1"})
    page = pages.describe("loop", hostile, FEBRUARY, tasks, NEW_YORK, [hostile])
    entry = {**pages.entry(page, tasks, FEBRUARY), "file": "x.html", "label": hostile}
    for html in (pages.render(page), pages.render_index("loop", hostile, [entry, entry])):
        elements = read(html).elements
        assert not [e for e in elements if e[0] in ("script", "img")]
        assert not [n for _, attributes in elements for n in attributes if n.startswith("on") or n == "style"]
        assert hostile not in html


def test_the_page_asks_for_nothing() -> None:
    html = pages.render(pages.describe("loop", "t", FEBRUARY, made.loop(), NEW_YORK))
    elements = read(html).elements
    policy = next(a["content"] for t, a in elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    addresses = [a[n] for _, a in elements for n in ("src", "href", "srcset", "action") if a.get(n)]
    assert {a for a in addresses if a and not a.startswith("#")} == {"data:,", "index.html"}
    assert "url(" not in html
    assert "@import" not in html


def test_the_policy_allows_the_style_that_is_there() -> None:
    import base64
    import hashlib

    html = pages.render(pages.describe("loop", "t", FEBRUARY, made.loop(), NEW_YORK))
    style = html.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in html


def test_the_same_manifests_give_the_same_page() -> None:
    first, again = (pages.render(pages.describe("loop", "t", FEBRUARY, made.loop(), NEW_YORK)) for _ in range(2))
    assert first == again


def test_a_large_index_that_may_be_chance_is_not_shown_as_drift() -> None:
    page = pages.describe("loop", "t", FEBRUARY, made.loop(), NEW_YORK)
    rows = re.findall(r"<li>.*?</li>", page["drift"]["chart"])
    styles = {style: [r for r in rows if f'class="bar {style}"' in r] for style in ("bad", "warn", "a")}
    assert "temp" in styles["bad"][0]
    assert "odd" in styles["warn"][0]
    assert "hour" in styles["a"][0]


def test_what_was_not_judged_is_not_called_fine() -> None:
    why = "2 days against 40: whatever is in them, p is at least 0.0012, and at most 0.001 would rule out chance"
    few = [made.column(name, 0.0, "too few") | {"why": why} for name in ("hour", "weather__temp")]
    drift = made.monitor(drift={"columns": few}, crossed=[])
    text = shown(made.loop() | {"monitor": drift})["drift"]
    assert "Nothing judged" in text
    assert "No limit crossed" not in text
    assert f"Not judged: hour, weather__temp ({why})." in text


def test_limits_other_than_drift_are_said_in_words() -> None:
    stale = "the newest row of labels.arrivals is 3 days old"
    tasks = made.loop() | {"monitor": made.monitor(crossed=["weather__temp: index 0.59 is over 0.2", stale])}
    text = shown(tasks)["drift"]
    assert stale in text
    assert "index 0.59 is over" not in text
    assert "2 limits crossed" in text


def entries(*months: int, **parts: Any) -> list[dict[str, Any]]:
    found = []
    for month in months:
        interval = Interval.parse(f"2013-{month:02d}-01T05:00+00:00/2013-{month + 1:02d}-01T05:00+00:00")
        tasks = made.loop()
        page = pages.describe("loop", "t", interval, tasks)
        found.append(
            {**pages.entry(page, tasks, interval), "file": f"{month}.html", "label": f"month {month}", **parts}
        )
    return found


def test_the_index_lists_the_newest_run_first() -> None:
    html = pages.render_index("loop", "Flight delays", entries(1, 2, 3))
    links = [a["href"] for t, a in read(html).elements if t == "a"]
    assert links == ["3.html", "3.html", "2.html", "1.html"]
    text = " ".join(read(html).sections.values())
    assert "3 runs ROC AUC of challenger and champion" in text
    assert "month 2 Promoted 0.7273 0.7054 +0.0219 1 of 3 2,010 1 37,435" in text
    assert 'class="chart"' in html


def test_an_index_of_one_run_has_no_chart() -> None:
    assert 'class="chart"' not in pages.render_index("loop", "t", entries(1))


def test_an_index_of_runs_without_a_gate_has_no_figures() -> None:
    html = pages.render_index("loop", "t", entries(1, 2, metric="", challenger=None, champion=None))
    assert 'class="chart"' not in html


def test_runs_judged_by_another_metric_are_not_in_the_chart() -> None:
    old = entries(1, metric="log_loss", challenger=0.5, champion=0.6)
    assert 'class="chart"' not in pages.render_index("loop", "t", old + entries(2))
    chart = pages.render_index("loop", "t", old + entries(2, 3))
    assert chart.count('class="dot a"') == 2


def test_many_runs_share_the_axis() -> None:
    html = pages.render_index("loop", "t", entries(*[1 + i % 11 for i in range(120)]))
    texts = re.findall(r'<text class="tick"[^>]*>mon \d+</text>', html)
    assert 3 <= len(texts) <= 6
