"""`python -m ksm.cli` is the command `ksm`."""

from ksm.cli import main

main()
