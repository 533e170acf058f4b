"""A list of rows that turns into tables of other libraries."""

from __future__ import annotations

# Spelled out for the same reason as in `settings`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    import pandas
    import polars
    import pyarrow

    Row = TypeVar("Row")
else:
    Row = object

TIMES = ("start_time", "end_time")
TEXT_LISTS = ("aliases",)
METRICS = "metrics."


class _Table(list[Row]):
    """A `list` of rows that turns into a table; a subclass defines the columns."""

    __slots__ = ()

    def to_pandas(self) -> pandas.DataFrame:
        """Return the rows as a DataFrame of pandas; a missing metric is NaN.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        from ._optional import need

        pandas = need("pandas", "to_pandas")
        data: dict[str, Any] = {}
        for name, values in self._columns().items():
            if name in TIMES:
                data[name] = [pandas.to_datetime(time, unit="ms", utc=True) for time in values]
            elif name.startswith(METRICS):
                data[name] = [float("nan") if value is None else value for value in values]
            else:
                data[name] = values
        return pandas.DataFrame(data)

    def to_arrow(self) -> pyarrow.Table:
        """Return the rows as a table of Arrow; a missing metric is null, as it is no NaN.

        Raises:
            MissingPackageError: pyarrow is not installed.
        """
        from ._optional import need

        arrow = need("pyarrow", "to_arrow")

        def kind(name: str) -> Any:
            if name in TIMES:
                return arrow.timestamp("ms", tz="UTC")
            if name in TEXT_LISTS:
                return arrow.list_(arrow.string())
            return arrow.float64() if name.startswith(METRICS) else arrow.string()

        columns = self._columns()
        return arrow.table({name: arrow.array(values, kind(name)) for name, values in columns.items()})

    def to_polars(self) -> polars.DataFrame:
        """Return the rows as a DataFrame of Polars; a missing metric is null, as it is no NaN.

        Raises:
            MissingPackageError: Polars is not installed.
        """
        from ._optional import need

        polars = need("polars", "to_polars")

        def kind(name: str) -> Any:
            if name in TIMES:
                return polars.Datetime("ms", "UTC")
            if name in TEXT_LISTS:
                return polars.List(polars.String)
            return polars.Float64 if name.startswith(METRICS) else polars.String

        columns = self._columns()
        return polars.DataFrame(columns, schema={name: kind(name) for name in columns})

    def _columns(self) -> dict[str, list[Any]]:
        """Return the columns by name; a missing value is None, a time is milliseconds since 1970."""
        raise NotImplementedError
