"""`python -m sfl.cli`: the same as `sfl`."""

from sfl.cli import main

if __name__ == "__main__":
    main()
