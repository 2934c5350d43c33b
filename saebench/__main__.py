"""`python -m saebench`: the command line, if the script `saebench` is not on the path."""

from saebench.cli import main

main()
