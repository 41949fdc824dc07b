"""The README's table from a report: `python benchmarks/table.py report.json`.

The report is what `paligemma bench --json report.json` wrote.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from paligemma.bench.report import markdown

if __name__ == "__main__":
    sys.stdout.write(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
