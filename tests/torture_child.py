"""Children of the command torture that save in all the ways of delta_saves."""

import delta_saves

from embstore.cli import _torture_child


def main():
    """Serve cases from standard input."""
    delta_saves.install()
    _torture_child.main()
