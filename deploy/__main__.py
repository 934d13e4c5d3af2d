"""`python -m deploy` is the command `freshet`."""

from deploy.entry import main

main()
