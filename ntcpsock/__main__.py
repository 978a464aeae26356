"""`python -m ntcpsock` is `ntcp`."""

from ntcpsock.cli import main

if __name__ == "__main__":
    main()
