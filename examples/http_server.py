"""Python's own HTTP server, published by name: what it knows of ntcpsock is one line.

    NTCP_BROKER=ntcp://HOST:6060 python examples/http_server.py web.ntcp 8000 FOLDER

(`ntcp run -m http.server 8000 --bind web.ntcp` is the same without that line.)
"""

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import ntcpsock


def main() -> None:
    host, port, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    ntcpsock.install()  # from here on, `socket` knows .ntcp names
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer((host, port), handler) as server:
        print(f"http://{host}:{port}/", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
