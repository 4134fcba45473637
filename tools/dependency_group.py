"""Print the requirements of one dependency group of pyproject.toml, one a line, for a pip that can't read groups itself."""

import sys
import tomllib
from pathlib import Path

groups = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["dependency-groups"]
print("\n".join(groups[sys.argv[1]]))
