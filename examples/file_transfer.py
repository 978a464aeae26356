"""Send files from one machine to another, with a progress bar and a checksum.

    there:  NTCP_BROKER=ntcp://HOST:6060 python examples/file_transfer.py receive inbox.ntcp:9000 FOLDER
    here:   NTCP_BROKER=ntcp://HOST:6060 python examples/file_transfer.py send inbox.ntcp:9000 FILE...

A connection carries one file: a line of JSON with its name and size, its bytes, its SHA-256. The receiver answers
with one line, so the sender knows what has arrived.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import BinaryIO

from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

import ntcpsock as socket

CHUNK = 256 * 1024
DIGEST_SIZE = hashlib.sha256().digest_size


def progress_bar() -> Progress:
    columns = (
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns)


def send(address: tuple[str, int], path: Path) -> str:
    """Send one file; what the receiver says."""
    digest = hashlib.sha256()
    with (
        socket.create_connection(address) as connection,
        open(path, "rb") as file,
        progress_bar() as progress,
    ):
        task = progress.add_task(path.name, total=path.stat().st_size)
        header = {"name": path.name, "size": path.stat().st_size}
        connection.sendall(json.dumps(header).encode() + b"\n")
        while chunk := file.read(CHUNK):
            connection.sendall(chunk)
            digest.update(chunk)
            progress.advance(task, len(chunk))
        connection.sendall(digest.digest())
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("r") as answer:
            return answer.readline().strip()


def receive(stream: BinaryIO, folder: Path) -> str:
    """Receive one file; what to tell the sender."""
    digest = hashlib.sha256()
    with progress_bar() as progress:
        header = json.loads(stream.readline(10_000))
        # Only the last part of the name: the sender does not choose the folder.
        path, left = folder / Path(header["name"]).name, int(header["size"])
        unfinished = path.with_name(path.name + ".part")
        task = progress.add_task(path.name, total=left)
        with open(unfinished, "wb") as file:
            while left and (chunk := stream.read(min(CHUNK, left))):
                file.write(chunk)
                digest.update(chunk)
                left -= len(chunk)
                progress.advance(task, len(chunk))
        if left or stream.read(DIGEST_SIZE) != digest.digest():
            return f"error: {path.name} has not arrived whole"
        unfinished.replace(path)
        return f"received {path.name} {digest.hexdigest()}"


def serve(address: tuple[str, int], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with socket.create_server(address) as listener:
        print(f"files sent to {address[0]}:{address[1]} go to {folder}", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as stream:
                try:
                    answer = receive(stream, folder)
                    connection.sendall(answer.encode() + b"\n")
                except (OSError, ValueError, KeyError) as error:
                    answer = f"error: {error}"
                print(answer, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["send", "receive"])
    parser.add_argument("address", metavar="NAME.ntcp:PORT")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    options = parser.parse_args()
    host, _, port = options.address.rpartition(":")
    if options.what == "receive":
        serve((host, int(port)), options.paths[0])
    for path in options.paths:
        answer = send((host, int(port)), path)
        print(answer)
        if not answer.startswith("received"):
            sys.exit(1)


if __name__ == "__main__":
    main()
