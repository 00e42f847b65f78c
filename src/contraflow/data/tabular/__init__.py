"""Tables of numbers: files read piece by piece, and the data source made of them."""

from contraflow.data.tabular.file import TableFile
from contraflow.data.tabular.reading import open_table, read_table
from contraflow.data.tabular.table import Table

__all__ = ["Table", "TableFile", "open_table", "read_table"]
