"""``python -m enginewright.cli``: the same as the command ``enginewright``."""

from enginewright.cli.main import main

main(prog_name="enginewright")
