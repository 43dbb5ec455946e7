"""`python -m flows` is `refit`, with the code of the folder it is called in."""

from flows.cli import main

main(prog_name="refit")
