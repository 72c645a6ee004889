"""`python -m afina.compat script.py ...`: run a script with afina standing in for `peft`."""

from __future__ import annotations

import runpy
import sys

from . import VERSION, stand_in


def main() -> None:
    """Run the script named on the command line."""
    if len(sys.argv) < 2:
        sys.exit("usage: python -m afina.compat SCRIPT [ARGUMENTS...]")
    stand_in()
    print(f"afina stands in for peft {VERSION}", file=sys.stderr)
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
