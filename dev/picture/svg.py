#!/usr/bin/env python3
"""Reads a terminal screen with colors (`tmux capture-pane -e -p`) from stdin and writes a picture of it (SVG) to stdout."""

import io
import re
import sys

from rich.console import Console
from rich.text import Text

COLUMNS = 80

console = Console(record=True, width=COLUMNS, file=io.StringIO())
console.print(Text.from_ansi(sys.stdin.read().rstrip("\n")))
svg = console.export_svg(title="rproc", unique_id="rproc")
# GitHub loads no fonts from other servers; without them, the picture uses the reader's monospace font.
svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
sys.stdout.write(re.sub(r"font-family: *Fira Code, *monospace", "font-family: ui-monospace, monospace", svg))
