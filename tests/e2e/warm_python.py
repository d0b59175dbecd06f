"""A Python that has imported torch already: it runs README's commands in a fraction of the time.

``warm_python.py serve SOCKET MODULE...`` imports the modules, says so, and runs programs for all
who ask, each in a fork of its own, one after the other. ``warm_python.py python PROGRAM...`` and
``warm_python.py torchrun FLAGS... PROGRAM...`` ask the server at $WARM_PYTHON, with their own
folder, environment, and streams, and end as the program does. Anything that python is asked for
besides a program's file is done by a Python of its own.

torchrun's flags are read by torchrun's own parser. Then the program runs as the only process, since
as many as they ask for there are not; with --dry_run it is told that it is one of so many.
"""

import json
import os
import runpy
import signal
import socket
import sys
from importlib import import_module
from pathlib import Path

LONGEST_REQUEST = 1 << 17


def ask(kind: str, arguments: list[str]) -> int:
    """Have a program run; gives its exit code."""
    if kind == "python" and (not arguments or arguments[0].startswith("-")):
        os.execv(sys.executable, [sys.executable, *arguments])
    request = {
        "kind": kind,
        "arguments": arguments,
        "cwd": str(Path.cwd()),
        "environ": {**os.environ},
    }
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ["WARM_PYTHON"])
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        return int(connection.recv(16) or b"1")


def serve(address: str, modules: list[str]) -> None:
    """Answer requests until told to stop."""
    for module in modules:
        import_module(module)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            with connection:
                request, streams, _, _ = socket.recv_fds(connection, LONGEST_REQUEST, 3)
                child = os.fork()
                if child == 0:
                    server.close()
                    connection.close()
                    os._exit(run(json.loads(request), streams))
                for stream in streams:
                    os.close(stream)
                _, status = os.waitpid(child, 0)
                # As a shell tells it where a signal has ended a program.
                code = os.waitstatus_to_exitcode(status)
                connection.sendall(str(code if code >= 0 else 128 - code).encode())


def run(request: dict, streams: list[int]) -> int:
    """Be the program that is asked for; gives its exit code."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environ"])
    try:
        arguments = request["arguments"]
        if request["kind"] == "torchrun":
            arguments = without_torchrun(arguments)
        sys.argv = arguments
        sys.path[0] = str(Path(arguments[0]).resolve().parent)
        runpy.run_path(arguments[0], run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def without_torchrun(arguments: list[str]) -> list[str]:
    """The program and its flags."""
    from torch.distributed.run import parse_args

    parsed = parse_args(arguments)
    if {"--dry_run", "--dry-run"} & {*parsed.training_script_args}:
        nodes = int(parsed.nnodes.partition(":")[0])  # a range by default
        os.environ["WORLD_SIZE"] = str(nodes * int(parsed.nproc_per_node))
    return [parsed.training_script, *parsed.training_script_args]


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
