"""`python -m specc` is the `specc` command."""

from specc.runtime.cli import main

raise SystemExit(main())
