"""`python -m deploy` is the command `freshet`."""

from deploy.cli import main

main()
