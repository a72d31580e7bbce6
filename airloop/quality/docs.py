"""
Data Docs: Great Expectations' own page for one validation result, readable without a network.

Great Expectations' templates load Bootstrap, jQuery, Vega and fonts from seven hosts. These tags are taken out; a
small style sheet of ours gives the classes that the page uses, and what scripts would unfold is shown unfolded.
"""

from __future__ import annotations

import copy
import html
import json
import math
import re
from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airloop.quality.evaluate import Evaluation, Outcome

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult

_REMOTE = (
    re.compile(r"<link\b[^>]*href=\"(?:https?:)?//[^>]*>", re.I),
    re.compile(r"<link\b[^>]*rel=\"shortcut icon\"[^>]*>", re.I),
    re.compile(r"<script\b[^>]*\bsrc=[^>]*>\s*</script>", re.I),
    # What is left of scripts drives the libraries above: tooltips, pop-ups, a filter.
    re.compile(r"<script\b[^>]*>.*?</script>", re.I | re.S),
    re.compile(r"<img\b[^>]*src=\"(?:https?:)?//[^>]*>", re.I),
    re.compile(r"background:\s*url\('https?:[^;]*;", re.I),
    re.compile(r"<footer\b.*?</footer>", re.I | re.S),
)


def validation_result(
    evaluation: Evaluation, *, asset: str, run_name: str, run_time: str
) -> ExpectationSuiteValidationResult:
    """
    The evaluation as Great Expectations keeps it.

    :param asset: what was validated, for people.
    :param run_name: the key, or its beginning, under which it was validated.
    :param run_time: ISO 8601 with offset; it orders the results of one suite.
    """
    from great_expectations import __version__ as version
    from great_expectations.core import ExpectationSuiteValidationResult

    results = [_result(outcome) for outcome in evaluation.outcomes]
    good = sum(bool(r.success) for r in results)
    return ExpectationSuiteValidationResult(
        success=good == len(results),
        results=results,
        suite_name=evaluation.suite.name,
        statistics=statistics(evaluation),
        meta={
            "great_expectations_version": version,
            "active_batch_definition": {"data_asset_name": asset, "datasource_name": "airloop"},
            "batch_spec": {"data_asset_name": asset},
            # Its pages read a name as a date where they can, and one of digits can be a date that does not exist.
            "run_id": {"run_name": f"key {run_name}", "run_time": run_time},
            "validation_time": run_time,
        },
    )


def statistics(evaluation: Evaluation) -> dict[str, Any]:
    """Great Expectations' statistics of a suite's results."""
    total, good = len(evaluation.outcomes), sum(o.success for o in evaluation.outcomes)
    return {
        "evaluated_expectations": total,
        "successful_expectations": good,
        "unsuccessful_expectations": total - good,
        "success_percent": good / total * 100 if total else None,
    }


def _result(outcome: Outcome) -> ExpectationValidationResult:
    from great_expectations.core import ExpectationValidationResult

    return ExpectationValidationResult(
        success=outcome.success,
        expectation_config=outcome.rule.expectation.configuration,
        result=plain(outcome.result),
        exception_info={
            "raised_exception": bool(outcome.error),
            "exception_message": outcome.error or None,
            # Rendered as it is; our checks end with a sentence, not with a traceback.
            "exception_traceback": "",
        },
    )


def _as_shown(result: ExpectationSuiteValidationResult) -> ExpectationSuiteValidationResult:
    """The result as Great Expectations 1.24 can render it: it stumbles over failed distinct sets and escapes little."""
    shown = copy.copy(result)
    shown.results = []
    for one in result.results:
        one = copy.copy(one)
        # Its templates put values of the data into cells as they are.
        listed = one.result = _escaped(one.result)
        if one.expectation_config is not None and "distinct_values" in one.expectation_config.type and listed:
            parts = {
                "unexpected": listed.get("partial_unexpected_list"), "missing": listed.get("partial_missing_list")
            }  # fmt: skip
            text = "; ".join(f"{k}: {', '.join(map(str, v))}" for k, v in parts.items() if v)
            one.result = {"observed_value": text or "as expected"}
        shown.results.append(one)
    return shown


def plain(value: Any) -> Any:
    """The same as JSON can hold: times as ISO 8601, NaN and infinity as text, NumPy's numbers as Python's."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, datetime | date):
        return value.isoformat()
    if hasattr(value, "item"):
        return plain(value.item())
    return str(value)


def _escaped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _escaped(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_escaped(v) for v in value]
    return html.escape(value) if isinstance(value, str) else value


def write_docs(result: ExpectationSuiteValidationResult, folder: Path) -> None:
    """
    Write ``index.html``, the page, and ``result.json``, the result that it shows.

    :param folder: is made if it is not there.
    """
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view.view import DefaultJinjaPageView

    document = ValidationResultsPageRenderer(run_info_at_end=True).render(_as_shown(result))
    page: str = DefaultJinjaPageView().render(  # type: ignore[no-untyped-call]
        document, show_how_to_buttons=False, cta_footer=None
    )
    for remote in _REMOTE:
        page = remote.sub("", page)
    page = _ELSEWHERE.sub(r"\1", page)
    title = html.escape(f"{result.suite_name}: {'passed' if result.success else 'failed'}")
    page = page.replace(
        "<title>Data documentation compiled by Great Expectations</title>", f"<title>{title}</title>", 1
    )
    page = page.replace("<title></title>", "", 1).replace("<html>", '<html lang="en">', 1)
    page = page.replace("<head>", f"<head>{_POLICY}", 1).replace("</head>", f"<style>{_STYLE}</style></head>", 1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.html").write_text(page, encoding="utf-8")
    content = result.to_json_dict()  # type: ignore[no-untyped-call]
    (folder / "result.json").write_text(json.dumps(plain(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")


_ELSEWHERE = re.compile(r"<a\b[^>]*href=\"\.\./[^>]*>(.*?)</a>", re.I | re.S)
"""Links to other pages of a Data Docs site; this page stands alone."""

# Whatever a value in the table contains: nothing on the page runs, and nothing is fetched.
_POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
)

_STYLE = """
:root{color-scheme:light dark;--line:#d5d9de;--soft:#f3f5f7;--text:#1d2430;--good:#1a7f37;--bad:#b42318;--warn:#9a6700}
@media(prefers-color-scheme:dark){:root{--line:#3a424d;--soft:#232a33;--text:#e4e8ee;--good:#4ac26b;--bad:#ff7b72;--warn:#d4a72c}
body{background:#171c23}}
*{box-sizing:border-box}
body{margin:0;color:var(--text);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h4,h5,h6{margin:0;font-size:1.05rem}h4{font-size:1.3rem}.lead{margin:.2rem 0 1rem;opacity:.75}
a{color:inherit}.container-fluid{padding:0 1.25rem}.row{display:flex;flex-wrap:wrap;gap:1rem}
.row>.col-md-2{flex:0 0 15rem}.row>.col-md-10{flex:1 1 20rem;min-width:0}.row>.col-12{flex:0 0 100%}
.row>.col-6{flex:0 1 26rem}.ge-section .row>.table-responsive{flex:1 1 100%;min-width:0}
.navbar{height:auto!important;padding:.6rem 1.25rem;border-bottom:1px solid var(--line)}
.breadcrumb{display:flex;flex-wrap:wrap;gap:.5rem;list-style:none;margin:0;padding:0;overflow-wrap:anywhere}
.breadcrumb-item+.breadcrumb-item::before{content:"/ "}
.sticky{top:1rem}.sticky>.card.mb-3{display:none}
.card{border:1px solid var(--line);border-radius:6px}.card-header{padding:.5rem .75rem;background:var(--soft)}
.card-body{padding:.5rem .75rem}.nav{list-style:none;margin:0;padding:0}
.nav-link{display:block;padding:.15rem 0;text-decoration:none}
.sticky .navbar{border:0;padding:0}
.alert{padding:.6rem .9rem;border-radius:6px;background:var(--soft);border:1px solid var(--line)}
.table-responsive{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{padding:.45rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
td table{width:auto;margin-top:.5rem}td table td,td table th{padding:.15rem .6rem;border:1px solid var(--line)}
td td span+span::before{content:", "}
.badge{display:inline-block;padding:0 .4em;border-radius:4px;background:var(--soft);border:1px solid var(--line)}
.badge{overflow-wrap:anywhere}
.text-danger{color:var(--bad)}.text-success{color:var(--good)}.text-warning{color:var(--warn)}
.fas{font-style:normal;font-weight:700}
.fa-check-circle::before{content:"\\2713"}.fa-times::before{content:"\\2717"}
.fa-exclamation-triangle::before{content:"!"}
.btn[data-toggle],a[data-toggle=collapse],button[data-toggle=collapse]{display:none}
code,pre{white-space:pre-wrap;overflow-wrap:anywhere}
@media(max-width:700px){.row>.col-md-2{flex-basis:100%}.sticky{position:static;display:none}
.container-fluid{padding:0 .6rem}
.pl-5{padding-left:.6rem}th,td{padding:.35rem}}
"""
