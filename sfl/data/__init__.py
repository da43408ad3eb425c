"""From files of text to examples of tokens; nothing here needs torch but `sfl.data.batches`.

`prepare` is the whole path: read (`load`), share out and hold out (`partition`), tokenise
(`tokenizer`, `encode`).
"""

from sfl.data.encode import encode_rows, prompt_ids
from sfl.data.example import DataNotes, Dataset, Example, Kind, Row
from sfl.data.load import load_rows
from sfl.data.partition import hold_out, partition_rows
from sfl.data.prepare import held_out_only, prepare
from sfl.data.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "DataNotes",
    "Dataset",
    "Example",
    "Kind",
    "Row",
    "Tokenizer",
    "encode_rows",
    "held_out_only",
    "hold_out",
    "load_rows",
    "load_tokenizer",
    "partition_rows",
    "prepare",
    "prompt_ids",
]
