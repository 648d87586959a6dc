"""`python -m coloha` is `coloha`."""

from coloha.cli.main import main

raise SystemExit(main())
