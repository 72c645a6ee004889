"""`python -m afina`: the command line where no `afina` stands on the path."""

from .cli import main

main()
