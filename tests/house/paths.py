"""Where things are: the one place that counts folders."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
STORIES = SHARED / "models" / "stories260k"
QUICKSTART = ROOT / "examples" / "quickstart"
MODEL = QUICKSTART / "model"
