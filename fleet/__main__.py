"""``python -m fleet`` is the command ``bpfleet``."""

from fleet.cli import main

main()
