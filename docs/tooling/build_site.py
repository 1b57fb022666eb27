"""Build and check the site.

python docs/tooling/build_site.py     writes site/, and exits with 1 on a warning or a failed check
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from page import ROOT

_ENVIRONMENT = {"NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"}
"""Material for MkDocs otherwise prints news."""


def main() -> None:
    """Run MkDocs in strict mode, then the checks."""
    started = time.perf_counter()
    for command in [
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        [sys.executable, str(Path(__file__).with_name("check_site.py"))],
    ]:
        code = subprocess.run(command, cwd=ROOT, env={**os.environ, **_ENVIRONMENT}, check=False).returncode
        if code:
            sys.exit(code)
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
