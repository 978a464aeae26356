"""Download a file over HTTP and print its SHA-256: plain urllib, no word of ntcpsock in it.

ntcp run examples/download.py http://alice.ntcp:8000/file.bin file.bin
"""

import hashlib
import sys
import time
from urllib.request import urlopen


def main() -> None:
    url, path = sys.argv[1:]
    digest = hashlib.sha256()
    size = 0
    with urlopen(url, timeout=30) as response, open(path, "wb") as file:
        started = time.monotonic()
        while chunk := response.read(256 * 1024):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    seconds = time.monotonic() - started
    expected = response.headers["Content-Length"]
    if expected is not None and size != int(expected):
        sys.exit(f"{url}: {size} of {expected} bytes")
    print(digest.hexdigest(), size, f"{seconds:.3f}")


if __name__ == "__main__":
    main()
