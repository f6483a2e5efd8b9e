"""docs/hostile.md holds the table as the suite has it. THE0_WRITE_TABLE=1 writes it there."""

from __future__ import annotations

import os
from pathlib import Path

from hostile import test_credentials, test_paths, test_processes, test_queries, test_sizes
from hostile.table import markdown, rows_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "hostile.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


def test_the_table_in_the_documents_is_this_suites() -> None:
    modules = (test_credentials, test_paths, test_processes, test_sizes, test_queries)
    table = markdown([row for module in modules for row in rows_of(module)])
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    written, _, after = rest.partition(END)
    if os.environ.get("THE0_WRITE_TABLE"):
        DOCUMENT.write_text(before + BEGIN + table + END + after)
        return
    assert written == table, "write it anew: THE0_WRITE_TABLE=1 pytest tests/hostile/test_table.py"
