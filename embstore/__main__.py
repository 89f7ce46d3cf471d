"""``python -m embstore`` is the command ``embstore``."""

from embstore.cli import main

raise SystemExit(main())
