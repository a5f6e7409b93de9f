"""Puts the tests' own folder on the path, so that they share `tiny.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
