"""
What a task tells OpenLineage: the snapshots that its step read and made, with what its manifest knows of them.

Airflow's provider ``openlineage`` asks an operator for this when a task starts, ends or fails, and sends the event.
It is imported by nobody else, so that DAG files do not pay for it.

Datasets are named as OpenLineage's conventions say: an Iceberg table by the place of its files (namespace ``file``),
with its name in the catalog as a symbolic link; a file by its path, or by its key in a bucket; a registered model by
its name (namespace ``mlflow``). The version of a dataset is the snapshot, the SHA-256 or the model's version. Columns
are given of what a step made; how columns come from columns is not, for no step knows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit

from airflow.providers.openlineage.extractors import OperatorLineage
from openlineage.client.event_v2 import InputDataset, OutputDataset
from openlineage.client.facet_v2 import (
    DatasetFacet,
    InputDatasetFacet,
    JobFacet,
    OutputDatasetFacet,
    RunFacet,
    catalog_dataset,
    data_quality_assertions_dataset,
    dataset_type_dataset,
    dataset_version_dataset,
    datasource_dataset,
    output_statistics_output_dataset,
    schema_dataset,
    sql_job,
    symlinks_dataset,
)

from airloop.objects import open_objects

if TYPE_CHECKING:
    from airloop_operators.base import StepOperator
    from airloop_operators.runners.base import RunOutcome
    from airloop_operators.settings import Settings

RUN_FACET = "airloop"
_TABLE = re.compile(r"[A-Za-z_]\w*\.[A-Za-z_]\w*(@\d+)?")
_MODEL = re.compile(r"model:/[^/]+/[^/]+")


def on_start(operator: StepOperator, settings: Settings) -> OperatorLineage[Any, Any]:
    """What is known before the step runs: references that other tasks handed over, and the table to write."""
    arguments, step = operator.call_arguments(), operator.step or operator.step_name
    written = _written(step, arguments)
    return OperatorLineage(
        inputs=_inputs(settings, _given(step, arguments), {}),
        outputs=[o for o in [_output(settings, written, {})] if o is not None] if written else [],
        run_facets={RUN_FACET: _run_facet(step=step)},
        job_facets=_job_facets(arguments),
    )


def on_end(operator: StepOperator, settings: Settings, outcome: RunOutcome | None) -> OperatorLineage[Any, Any]:
    """What an attempt relied on and made; without a manifest, what its record says it was given."""
    if outcome is None:
        return on_start(operator, settings)
    manifest, receipt = outcome.manifest, outcome.receipt
    record: Mapping[str, Any] = outcome.record or {}
    status = receipt.status if receipt is not None else "failed"
    step = operator.step or operator.step_name
    known: dict[str, Any] = {"step": step, "status": status}
    if receipt is not None:
        known |= {"attempt": receipt.attempt, "key": receipt.key, "manifest": receipt.manifest}
    if manifest is None:
        known |= {"error": record.get("error", {}).get("class", "")}
        arguments = record.get("arguments") or operator.call_arguments()
        return OperatorLineage(
            inputs=_inputs(settings, _given(step, arguments), {}),
            run_facets={RUN_FACET: _run_facet(**known)},
            job_facets=_job_facets(arguments),
        )
    known |= {
        "reused": status == "reused",
        "madeBy": dict(manifest["run"]),
        "code": manifest["code"]["fingerprint"],
        "libraries": manifest["code"]["libraries"],
        "interval": manifest["interval"],
        "counts": manifest["counts"],
    }
    given = [i["reference"] for i in manifest["inputs"].values() if i["kind"] not in ("files", "manifest")]
    # A report is given manifests; what they are about stands in the operator's arguments.
    given = given or _given(step, operator.call_arguments())
    assertions = _assertions(manifest)
    inputs = _inputs(settings, given, {given[0]: assertions} if assertions and given else {})
    inputs += _files(operator, manifest)
    outputs = [_output(settings, text, manifest.get("tables", {}).get(text, {})) for text in _made(manifest)]
    outputs += [_artifact(address) for role, address in manifest["links"].items() if role in ("report", "docs")]
    return OperatorLineage(
        inputs=inputs,
        outputs=[o for o in outputs if o is not None],
        run_facets={RUN_FACET: _run_facet(**known)},
        job_facets=_job_facets(manifest["arguments"]),
    )


# -------------------------------------------------------------------- datasets


def _written(step: str, arguments: Mapping[str, Any]) -> str:
    """The table that a step is told to write; empty if it is told none."""
    table = arguments.get("table")
    # What validate is told by this argument is what it reads.
    return table if step != "validate" and isinstance(table, str) and _TABLE.fullmatch(table) else ""


def _given(step: str, arguments: Mapping[str, Any]) -> list[str]:
    """What arguments name, but for the table that the step is told to write."""
    written = _written(step, arguments)
    return [reference for reference in _mentioned(arguments) if reference != written]


def _made(manifest: Mapping[str, Any]) -> list[str]:
    """What a step made: not what it hands on as it got it, but for the data gate, which publishes what it lets pass."""
    given = {i["reference"] for i in manifest["inputs"].values()} if manifest["step"] != "validate" else set()
    made = {o["reference"]: None for o in manifest["outputs"].values() if o["kind"] and o["reference"] not in given}
    if manifest["step"] == "materialize":
        service, _, digest = manifest["outputs"]["feature_service"]["reference"].partition("@")
        made[f"{service}/online@{digest}"] = None
    return list(made)


def _mentioned(value: Any) -> list[str]:
    """References anywhere in arguments: as texts, or as results of other tasks."""
    return list(dict.fromkeys(_references(value)))


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if _TABLE.fullmatch(value) or _MODEL.fullmatch(value):
            yield value
    elif isinstance(value, Mapping):
        if "step" in value and "key" in value:
            value = {
                role: v for role, v in value.items() if role not in ("step", "key", "manifest", "interval", "counts")
            }
        for part in value.values():
            yield from _references(part)
    elif isinstance(value, Sequence):
        for part in value:
            yield from _references(part)


def _inputs(
    settings: Settings, references: Sequence[str], input_facets: Mapping[str, dict[str, InputDatasetFacet]]
) -> list[InputDataset]:
    found = []
    for text in dict.fromkeys(references):
        named = _named(settings, text)
        if named is not None:
            namespace, name, facets = named
            found.append(InputDataset(namespace, name, inputFacets=input_facets.get(text, {}), facets=facets))
    return found


def _output(settings: Settings, text: str, table: Mapping[str, Any]) -> OutputDataset | None:
    named = _named(settings, text)
    if named is None:
        return None
    namespace, name, facets = named
    statistics: dict[str, OutputDatasetFacet] = {}
    if table:
        fields = [
            schema_dataset.SchemaDatasetFacetFields(name=column, type=kind, ordinal_position=number)
            for number, (column, kind) in enumerate(table["columns"], 1)
        ]
        facets["schema"] = schema_dataset.SchemaDatasetFacet(fields=fields)
        statistics["outputStatistics"] = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
            rowCount=table["rows_added"], size=table["bytes_added"], fileCount=table["files_added"]
        )
    return OutputDataset(namespace, name, outputFacets=statistics, facets=facets)


def _named(settings: Settings, text: str) -> tuple[str, str, dict[str, DatasetFacet]] | None:
    """Namespace, name and facets of a reference; None for one that names nothing yet."""
    name, _, exact = text.partition("@")
    if text.startswith("model:/"):
        kind, version = text.removeprefix("model:/").split("/", 1)
        if version == "none":
            return None
        return "mlflow", f"runs/{version}" if kind == "run" else kind, _facets(version, "MODEL")
    if text.startswith("decision:"):
        path, _, digest = text.removeprefix("decision:").partition("#")
        return *_dataset(open_objects(settings.artifacts).uri(path)), _facets(digest, "FILE")
    if not _TABLE.fullmatch(text):
        return "feast", name, _facets(exact, "FEATURE_SERVICE")
    namespace, root = _warehouse(settings)
    address = f"{namespace}/{root}".rstrip("/") if namespace else Path(root).as_uri()
    facets = _facets(exact, "TABLE") | {
        "dataSource": datasource_dataset.DatasourceDatasetFacet(name="iceberg", uri=address),
        "catalog": catalog_dataset.CatalogDatasetFacet(
            framework="iceberg", type="sql", name="airloop", warehouseUri=address
        ),
        "symlinks": symlinks_dataset.SymlinksDatasetFacet(
            identifiers=[symlinks_dataset.Identifier(namespace=address, name=name, type="TABLE")]
        ),
    }
    return namespace or "file", "/".join(part for part in (root, *name.split(".")) if part), facets


def _warehouse(settings: Settings) -> tuple[str, str]:
    """``s3://bucket`` and the prefix there; or nothing and the folder."""
    place = settings.environment.get("AIRLOOP_WAREHOUSE") or f"{settings.environment['AIRLOOP_HOME']}/warehouse"
    if place.startswith("s3://"):
        bucket, _, prefix = place.removeprefix("s3://").partition("/")
        return f"s3://{bucket}", prefix.strip("/")
    return "", str(Path(place).expanduser().resolve())


def _facets(version: str, kind: str) -> dict[str, DatasetFacet]:
    found: dict[str, DatasetFacet] = {"datasetType": dataset_type_dataset.DatasetTypeDatasetFacet(datasetType=kind)}
    if version:
        found["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=version)
    return found


def _files(operator: StepOperator, manifest: Mapping[str, Any]) -> list[InputDataset]:
    """Source files under the places that the operator names, each with its digest as version."""
    given = getattr(operator, "files", None) or operator.call_arguments().get("files") or []
    patterns = [given] if isinstance(given, str) else [str(p) for p in given]
    found = []
    for file in manifest["details"].get("files", []):
        namespace, name = _place(file["name"], patterns)
        facets = _facets(file["sha256"], "FILE")
        found.append(InputDataset(namespace, name, facets=facets))
    return found


def _place(name: str, patterns: Sequence[str]) -> tuple[str, str]:
    """Where a file lies, as far as the patterns tell: a path, or a path inside a Python package."""
    for pattern in patterns:
        package = pattern.startswith("package:")
        path = pattern.removeprefix("package:")
        fixed = re.split(r"[*?\[]", path, maxsplit=1)[0]
        if path == fixed and path.rpartition("/")[2] == name:
            return ("package", path) if package else ("file", str(Path(path).expanduser().absolute()))
        if path != fixed:
            folder = fixed.rpartition("/")[0]
            return ("package", f"{folder}/{name}") if package else ("file", str(Path(folder or ".").absolute() / name))
    return "file", name


def _artifact(address: str) -> OutputDataset:
    return OutputDataset(*_dataset(address), facets=_facets("", "FILE"))


def _dataset(address: str) -> tuple[str, str]:
    """Namespace and name of a file: a path, or a key in a bucket."""
    parts = urlsplit(address)
    place = unquote(parts.path)
    return ("file", place) if parts.scheme == "file" else (f"{parts.scheme}://{parts.netloc}", place.lstrip("/"))


# -------------------------------------------------------------------- facets


def _assertions(manifest: Mapping[str, Any]) -> dict[str, InputDatasetFacet]:
    """The rules that the data gate evaluated."""
    if manifest["step"] != "validate" or not manifest["details"].get("expectations"):
        return {}
    assertions = [
        data_quality_assertions_dataset.Assertion(
            assertion=e["rule"].partition("(")[0],
            success=bool(e["success"]),
            column=e["arguments"].get("column"),
            # OpenLineage knows two severities: what fails the step, and what is reported.
            severity="error" if e["severity"] == "critical" else "warn",
        )
        for e in manifest["details"]["expectations"]
    ]
    facet = data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet(assertions=assertions)
    return {"dataQualityAssertions": facet}


def _job_facets(arguments: Mapping[str, Any]) -> dict[str, JobFacet]:
    query = arguments.get("sql")
    return {"sql": sql_job.SQLJobFacet(query=query, dialect="duckdb")} if isinstance(query, str) else {}


def _run_facet(**known: Any) -> RunFacet:
    return cast(RunFacet, RunFacet().with_additional_properties(**known))
