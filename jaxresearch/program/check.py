"""`python -m jaxresearch.program.check ROOT PROGRAM ...`: are stored programs the ones that their names say?

A process of its own, because it parses what may have been tampered with. Prints the first that is not, and exits with 1.
"""

import sys
from pathlib import Path

from jaxresearch.errors import JaxresearchError
from jaxresearch.program.program import load


def main() -> int:
    root, *programs = sys.argv[1:]
    for program in programs:
        try:
            load(Path(root), program)
        except JaxresearchError as error:
            print(error)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
