"""The client of http_server.py: any HTTP library works, since all of them use `socket`. This one is urllib.

NTCP_BROKER=ntcp://HOST:6060 python examples/http_client.py http://web.ntcp:8000/
"""

import sys
from urllib.error import URLError
from urllib.request import urlopen

import ntcpsock


def main() -> None:
    with ntcpsock.patched():
        try:
            with urlopen(sys.argv[1], timeout=30) as response:
                print(response.status, response.headers["Content-Type"], file=sys.stderr)
                sys.stdout.buffer.write(response.read())
        except URLError as error:
            # urllib wraps the OSError. Ours carries a report: what was tried, how long, what would help.
            report = getattr(error.reason, "report", None)
            sys.exit(f"{error.reason}\n{report or ''}")


if __name__ == "__main__":
    main()
