"""``python -m streamssm``, and the installed program: the command line, imported where Ctrl-C is
already caught, for its libraries take a moment."""

from __future__ import annotations

import sys


def main() -> None:
    """The ``streamssm`` program."""
    try:
        from streamssm.cli import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
