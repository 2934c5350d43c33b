"""`python -m saebench`: the command line, where the script `saebench` is not on the path."""

from saebench.cli import main

main()
