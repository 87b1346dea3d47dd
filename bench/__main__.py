"""Runs the benchmarks one after the other: `python -m bench`, or some of them: `python -m bench store cli`.

Each is a program of its own (bench/bench_NAME.py) that prints ratios with their spread and keeps them in
bench/results/NAME.json.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(wanted: list[str]) -> int:
    found = {path.stem.removeprefix("bench_"): path for path in sorted(HERE.glob("bench_*.py"))}
    unknown = [name for name in wanted if name not in found]
    if unknown:
        print(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(found)}", file=sys.stderr)
        return 2
    failed = []
    for name in wanted or found:
        print(f"\n== {name}", flush=True)
        if subprocess.run([sys.executable, str(found[name])], cwd=HERE.parent, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"\nended with an error: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
