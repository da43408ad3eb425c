"""Parquet by pyarrow, with the class names that `datasets` puts into a file's metadata.

pyarrow comes with `datasets`; reading by `datasets` itself would leave an Arrow copy of a device's
private data in a cache folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sfl.data.classes import class_names, name_classes
from sfl.data.malformed import Malformed
from sfl.node.textfile import refuse_pointer


def read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Places and fields of all rows. Raises Malformed, NotText for a Git LFS pointer, OSError."""
    import pyarrow
    import pyarrow.parquet

    with path.open("rb") as file:
        refuse_pointer(file.read(100))
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            classes = declared_classes(file.schema_arrow.metadata or {})
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    place = f"row {number}"
                    yield place, name_classes(values, classes, place)
    except UnicodeDecodeError:
        raise Malformed(f"row {number + 1} or one soon after has text that is not UTF-8") from None
    except (pyarrow.ArrowException, ValueError, OverflowError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's; pyarrow's own, of damaged pages, has no number
        found = str(error).strip().splitlines()[0].rstrip(".")
        if number:
            raise Malformed(f"after row {number} it cannot be read: {found}") from None
        raise Malformed(f"not a Parquet file that can be read: {found}") from None


def declared_classes(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Class names by field, as `datasets` declares them under the key `huggingface`."""
    try:
        declared = json.loads(metadata.get(b"huggingface", b"{}"))
        return class_names(declared.get("info", {}).get("features", {}))
    except (ValueError, AttributeError, KeyError, TypeError):
        return {}  # another program's metadata under that key
