"""Check that the mirrored test of each decision module alone covers every branch of it.

Decisions are tested as values. A branch that only the test of a whole program reaches is a rule that nobody wrote down.

    python -m tests.individual_coverage [FILE...]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("opamp", "policy", "fleet", "auth", "control/access", "control/trust", "control/rollouts", "control/ledger")
"""Folders below `relay`."""


def sources() -> list[Path]:
    """All files below `PACKAGES` except `__init__.py`."""
    found = (path for package in PACKAGES for path in (ROOT / "relay" / package).rglob("*.py"))
    return sorted(path for path in found if path.name != "__init__.py")


def missing(source: Path) -> str:
    """Lines and branches of a file that its own test does not reach; empty if there are none."""
    relative = source.relative_to(ROOT / "relay")
    test = ROOT / "tests" / relative.parent / f"test_{relative.name}"
    if not test.exists():
        return f"there is no {test.relative_to(ROOT)}"
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "COVERAGE_FILE": f"{folder}/data", "COVERAGE_CORE": "ctrace"}
        include = f"--include={source.relative_to(ROOT)}"
        python = [sys.executable, "-m"]
        traced = ["--branch", f"--source={source.parent.relative_to(ROOT)}"]
        command = [*python, "coverage", "run", *traced, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        run = subprocess.run([*command, str(test)], cwd=ROOT, env=environment, capture_output=True, text=True)
        if run.returncode:
            return f"its test fails:\n{run.stdout[-2000:]}{run.stderr[-500:]}"
        report = [*python, "coverage", "json", "-q", "-o", f"{folder}/report", include]
        subprocess.run(report, cwd=ROOT, env=environment, check=True, capture_output=True)
        (found,) = json.loads(Path(f"{folder}/report").read_text())["files"].values()
    lines = [str(line) for line in found["missing_lines"]]
    branches = [f"{start}->{'exit' if end < 0 else end}" for start, end in found["missing_branches"]]
    return ", ".join(lines + branches)


def main() -> int:
    """Check all files, or those named on the command line; return 1 if one is not covered."""
    files = [Path(name).resolve() for name in sys.argv[1:]] or sources()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        uncovered = {source: found for source, found in zip(files, pool.map(missing, files), strict=True) if found}
    for source, found in uncovered.items():
        print(f"{source.relative_to(ROOT)}: its own test does not reach {found}")
    print(f"{len(files) - len(uncovered)} of {len(files)} files are covered by their own tests alone")
    return bool(uncovered)


if __name__ == "__main__":
    sys.exit(main())
