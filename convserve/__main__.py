"""Runs the command line: python -m convserve."""

import sys

from convserve.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
