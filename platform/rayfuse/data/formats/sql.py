"""Rows of a database, as a query or a table in a URL.

    sqlite:////data/shop.db?table=reviews
    postgresql://db.example/shop?query=SELECT text, stars FROM reviews ORDER BY id

Rows are fetched as a stream where the driver can.
"""

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode

from rayfuse.data.formats.base import CellParsers, Rows
from rayfuse.data.formats.delimited import check_header
from rayfuse.data.rows import Row
from rayfuse.errors import DataError, UnavailableError
from rayfuse.formatting import first_line
from rayfuse.spec.base import holds_credentials

if TYPE_CHECKING:
    from sqlalchemy import Engine

_BATCH_ROWS = 256
_DATABASE = re.compile(
    r"(sqlite|postgresql|mysql|mariadb|mssql|oracle|redshift|snowflake|duckdb)(\+\w+)?://", re.IGNORECASE
)
_ORDER = re.compile(r"\border\s+by\b", re.IGNORECASE)


def is_database(url: str) -> bool:
    """Return whether a URL is one of a database, in the form of SQLAlchemy."""
    return _DATABASE.match(url) is not None


def check_database_url(url: str) -> None:
    """Raise DataError for a URL without a query or table, or with a password, which would be stored with the rows."""
    if holds_credentials(url):
        raise DataError(
            f"{url.partition('://')[0]}://…: contains credentials; pass them as the database's driver takes them from its "
            "environment, such as PGUSER and PGPASSWORD"
        )
    _, options = _split(url)
    if ("query" in options) == ("table" in options):
        raise DataError(f"{url}: write one of ?table=NAME and ?query=SELECT … ORDER BY …")
    if "query" in options and not _ORDER.search(options["query"]):
        raise DataError(
            f"{url}: the query has no ORDER BY, so that its rows may come in another order each time; add it"
        )


def read_database(url: str, cell_parsers: CellParsers) -> Rows:
    """Yield the rows of a query, or of a table in the order of its primary key or else of all columns.

    Raises DataError if the query fails, UnavailableError if the database does not respond.
    """
    from sqlalchemy.exc import DBAPIError, NoSuchModuleError, OperationalError, SQLAlchemyError

    check_database_url(url)
    database, options = _split(url)
    try:
        engine = _connect(database)
        with engine.connect() as connection:
            rows = connection.execution_options(stream_results=True, yield_per=_BATCH_ROWS).execute(
                _statement(engine, options)
            )
            check_header(url, list(rows.keys()))
            for number, row in enumerate(rows.mappings(), start=1):
                yield Row(dict(row), url, number)
    except (NoSuchModuleError, ImportError) as error:
        raise DataError(f"{url}: {error}; install the database's driver for SQLAlchemy") from None
    except SQLAlchemyError as error:
        reason = first_line(str(error.orig if isinstance(error, DBAPIError) else error))
        is_down = isinstance(error, OperationalError) and not url.lower().startswith("sqlite")
        raise (UnavailableError if is_down else DataError)(f"{url}: {reason}") from None


def _split(url: str) -> tuple[str, dict[str, str]]:
    """Return the URL of the database, and the options of the rows."""
    database, _, query = url.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    others = urlencode([(name, value) for name, value in pairs if name not in ("query", "table")])
    return f"{database}?{others}" if others else database, {
        name: value for name, value in pairs if name in ("query", "table")
    }


def _connect(database: str) -> "Engine":
    from sqlalchemy import create_engine

    scheme, _, path = database.partition(":///")
    if scheme == "sqlite":  # which creates a file that does not exist, unless it is read only
        database = f"sqlite:///file:{quote(path.partition('?')[0])}?mode=ro&uri=true"
    return create_engine(database)


def _statement(engine: "Engine", options: dict[str, str]) -> Any:
    from sqlalchemy import MetaData, Table, select, text

    if "query" in options:
        return text(options["query"].replace(":", "\\:"))
    schema, _, name = options["table"].rpartition(".")
    table = Table(name, MetaData(), schema=schema or None, autoload_with=engine)
    return select(table).order_by(*(table.primary_key.columns or table.columns))
