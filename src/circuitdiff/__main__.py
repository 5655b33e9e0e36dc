"""`python -m circuitdiff` is the command `circuitdiff`."""

from circuitdiff.cli import main

main()
