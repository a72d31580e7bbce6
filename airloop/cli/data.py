"""``airloop tables`` and ``airloop sql``."""

from __future__ import annotations

import argparse
import sys

from airloop.cli.output import Output
from airloop.config import Config
from airloop.errors import BadArgument


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    tables = commands.add_parser("tables", help="Iceberg tables, or the columns and snapshots of one")
    tables.add_argument("table", nargs="?", help="namespace.table")
    tables.set_defaults(run=show_tables)

    sql = commands.add_parser("sql", help="ask the tables in SQL (DuckDB, read-only)")
    sql.add_argument("query", help="one statement; - reads it from standard input")
    sql.add_argument(
        "--at",
        action="append",
        default=[],
        metavar="TABLE@SNAPSHOT",
        help="read this table at a snapshot or branch; may be given several times",
    )
    sql.add_argument("--limit", type=int, default=50, help="rows shown at most; 0: all")
    sql.set_defaults(run=ask)


def show_tables(arguments: argparse.Namespace, config: Config, output: Output) -> None:
    from airloop.warehouse.catalog import Warehouse
    from airloop.warehouse.refs import TableRef

    warehouse = Warehouse.open(config)
    if arguments.table is None:
        rows = []
        for name in warehouse.tables():
            history = warehouse.history(name)
            rows.append(
                {
                    "table": name,
                    "rows": warehouse.count(TableRef(name, warehouse.head(name))),
                    "snapshots": len(history),
                    "changed": history[-1].committed_at.isoformat(timespec="seconds") if history else "",
                    "columns": ", ".join(warehouse.schema(name).names),
                }
            )
        output.rows(rows, empty="No tables yet; `make demo` or a first run makes some.")
        return
    name = arguments.table
    columns = [{"column": f.name, "type": str(f.type), "nullable": f.nullable} for f in warehouse.schema(name)]
    snapshots = [
        {
            "snapshot": str(s.id),
            "committed": s.committed_at.isoformat(timespec="seconds"),
            "operation": s.operation,
            "rows": s.rows_total,
            "made by key": s.key,
        }
        for s in warehouse.history(name)
    ]
    output.data({"table": name, "columns": columns, "snapshots": snapshots, "main": str(warehouse.head(name))})
    if not output.as_json:
        output.rows(columns, empty="No columns.")
        output.say()
        output.rows(snapshots, empty="No snapshots yet.")


def ask(arguments: argparse.Namespace, config: Config, output: Output) -> None:
    import duckdb

    from airloop.reference import Scope
    from airloop.warehouse.catalog import Warehouse
    from airloop.warehouse.refs import TableRef

    warehouse = Warehouse.open(config)
    chosen = {}
    for text in arguments.at:
        ref = TableRef.parse(text)
        chosen[ref.name] = ref
    query = sys.stdin.read() if arguments.query == "-" else arguments.query
    # Only the tables that the statement names are opened: planning one reads its metadata.
    wanted = {name for name in warehouse.tables() if name in query or name.partition(".")[2] in query} | set(chosen)
    scope = Scope(config)
    views = {name: chosen.get(name, TableRef(name)).resolve(scope) for name in sorted(wanted)}
    connection = warehouse.duckdb(views)
    try:
        statements = duckdb.extract_statements(query)
        if len(statements) != 1:
            raise BadArgument(f"{len(statements)} statements were given", "give one")
        if statements[0].type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
            raise BadArgument(
                f"a {str(statements[0].type).rpartition('.')[2]} statement was given",
                "tables are changed by steps, so that every change has a key and a snapshot; here only SELECT works",
            )
        relation = connection.sql(query)
        table = relation.limit(arguments.limit + 1).to_arrow_table() if arguments.limit else relation.to_arrow_table()
    except duckdb.Error as cause:
        raise BadArgument(str(cause), "`airloop tables` lists tables and columns") from cause
    rows = table.to_pylist()
    cut = bool(arguments.limit) and len(rows) > arguments.limit
    output.rows(rows[: arguments.limit] if cut else rows, empty="No rows.")
    if cut:
        output.say(output.paint(f"… more than {arguments.limit} rows; --limit 0 shows all", "dim"))
