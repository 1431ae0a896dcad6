"""Every kind of bad input: one clear line, a hint where there is something to do, the right exit code, nothing left."""

from __future__ import annotations

import http.server
import json
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

Dim = Callable[..., Any]

NOWHERE = "unix:/no/such/node.sock"
"""Named as the node, so that a test whose input is refused starts none."""


def table(**columns: Any) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path)


def text(data: str | bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data.encode() if isinstance(data, str) else data)


BAD_INPUTS = {
    "missing": ("gone.csv", lambda path: None, [], r"no such file or folder: \S+gone\.csv"),
    "empty csv": ("empty.csv", text(""), [], r"empty\.csv.* empty"),
    "empty parquet": ("empty.parquet", text(""), [], r"empty\.parquet is empty"),
    "not parquet": ("broken.parquet", text("PAR1 and then nothing"), [], r"broken\.parquet is not a Parquet file"),
    "wrong width": ("wide.csv", text("a,b\n1,2\n3,4,5\n"), [], r"wide\.csv, line 3: 3 fields, the header has 2"),
    "latin-1": ("latin.csv", text(b"a,b\n1,caf\xe9\n"), ["--columns", "a,b"], r"latin\.csv, line 2.*UTF-8"),
    "unknown column": ("near.csv", text("aa,b\n1,2\n"), [], r"column 'a'"),
    "unknown kept column": ("kept.csv", text("a,price\n1,2\n"), ["--columns", "a,prize"], r"'prize'"),
    "unknown id column": ("ids.csv", text("a,id\n1,2\n"), ["--id-column", "idd"], r"'idd'"),
    "duplicate ids": ("twice.csv", text("a,id\n1,x\n2,y\n3,x\n"), ["--id-column", "id"], r"twice\.csv.*x"),
    "null ids": ("null.parquet", table(a=[1.0, 2.0], id=["x", None]), ["--id-column", "id"], r"null\.parquet, row 1"),
    "null in an input": ("none.parquet", table(a=[1.0, None]), [], r"none\.parquet, row 1.*null"),
    "nan in an input": ("nan.parquet", table(a=[1.0, float("nan")]), [], r"nan\.parquet, row 1.*NaN"),
    "wrong dtype": ("dtype.parquet", table(a=["one", "two"]), [], r"FP64.*string|string.*FP64"),
    "wrong shape": ("shape.parquet", table(a=[[1.0, 2.0], [3.0, 4.0]]), [], r"a"),
    "no number": ("word.csv", text("a\n1\nmany\n"), [], r"word\.csv, line 3"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_a_bad_input_is_one_line_and_leaves_nothing(
    case: str, dim: Dim, echo_model: Path, dim_home: Path, tmp_path: Path
) -> None:
    name, write, options, said = BAD_INPUTS[case]
    write(tmp_path / name)
    output = tmp_path / "out.parquet"
    shown = dim("infer", "--model", echo_model, "--input", tmp_path / name, "--output", output, "--nodes", NOWHERE,
                "--json", *options)  # fmt: skip
    assert shown.code == 1
    error = shown.record["error"]
    assert re.search(said, error["message"]), error
    assert "\n" not in error["message"] and "Traceback" not in shown.err
    assert shown.err.startswith(f"error: {error['message']}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ([] if case == "missing" else [name])


@pytest.mark.parametrize(
    ("case", "hint"),
    [("unknown column", "aa"), ("unknown kept column", "price"), ("unknown id column", "id"), ("missing", "path")],
)
def test_the_hint_says_what_to_do(case: str, hint: str, dim: Dim, echo_model: Path, tmp_path: Path) -> None:
    name, write, options, _ = BAD_INPUTS[case]
    write(tmp_path / name)
    shown = dim("infer", "--model", echo_model, "--input", tmp_path / name, "--output", tmp_path / "o.csv",
                "--nodes", NOWHERE, *options)  # fmt: skip
    assert hint in shown.err.splitlines()[-1] and shown.err.splitlines()[-1].startswith("hint: ")


def test_an_image_that_does_not_decode_is_named(dim: Dim, image_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"\x89PNG and then nothing")
    shown = dim("infer", "--model", image_model, "--input", folder, "--output", tmp_path / "o.csv", "--nodes", NOWHERE)
    assert shown.code == 1
    assert "b.png" in shown.err and "decode" in shown.err


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"engine": "quantum"}, "quantum"), ({"licence": None}, "licence"), ({"engine": "torch"}, "program")],
)
def test_a_bad_model_package_is_refused(
    dim: Dim, write_model: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    shown = dim("model", "add", write_model(tmp_path / "model", **changes))
    assert shown.code in (1, 2) and shown.out == ""
    assert shown.err.startswith("error: ") and said in shown.err


def test_a_folder_that_is_no_model_is_refused(dim: Dim, tmp_path: Path) -> None:
    assert "dim-model.json" in dim("model", "add", tmp_path).err
    shown = dim("infer", "--model", tmp_path / "no", "--input", tmp_path, "--output", tmp_path / "o.csv")
    assert shown.code == 1 and "no such model folder" in shown.err


def test_an_unknown_model_name_offers_the_nearest(dim: Dim, echo_model: Path, tmp_path: Path) -> None:
    dim("model", "add", echo_model)
    (tmp_path / "rows.csv").write_text("a\n1\n")
    shown = dim("infer", "--model", "echo-b", "--input", tmp_path / "rows.csv", "--output", tmp_path / "o.csv")
    assert shown.code == 2 and "echo-a" in shown.err


@pytest.mark.parametrize(
    ("output", "said"),
    [("/proc/out.csv", "cannot be written"), (".", "neither in .parquet"), ("out.xlsx", "neither in .parquet")],
)
def test_an_output_that_cannot_be_written_is_refused_first(dim: Dim, tmp_path: Path, output: str, said: str) -> None:
    shown = dim("infer", "--model", "m", "--input", tmp_path, "--output", tmp_path / output)
    assert shown.code == 2 and said in shown.err


@pytest.fixture
def listening() -> Iterator[int]:
    """A port that a program listens on which is no Kubo: it answers every request with a web page."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *arguments: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_a_port_in_use_is_refused(dim: Dim, listening: int) -> None:
    shown = dim("up", "--port", listening)
    assert shown.code == 2
    assert (
        shown.err
        == f"error: port {listening} cannot be used: address already in use\nhint: dim up --port {listening + 1}\n"
    )


def test_an_ipfs_address_that_answers_something_else_is_refused(dim: Dim, listening: int) -> None:
    shown = dim("model", "list", "--ipfs", f"/ip4/127.0.0.1/tcp/{listening}")
    assert shown.code in (1, 2) and shown.err.startswith("error: ") and str(listening) in shown.err


def test_an_ipfs_address_that_answers_nothing_is_refused(dim: Dim) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: nobody answers, and nobody else takes the port
        port = closed.getsockname()[1]
        shown = dim("model", "list", "--ipfs", f"/ip4/127.0.0.1/tcp/{port}")
    assert shown.code == 1 and str(port) in shown.err and shown.err.count("\n") <= 2


@pytest.mark.parametrize("address", ["/ip4/127.0.0.1", "ftp://127.0.0.1:5001", "kubu"])
def test_an_ipfs_address_that_is_none_is_refused(dim: Dim, address: str) -> None:
    shown = dim("model", "list", "--ipfs", address)
    assert shown.code in (1, 2) and shown.err.startswith("error: ") and "Traceback" not in shown.err


def test_a_spec_with_an_unknown_key_names_the_nearest(dim: Dim, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("name: n\nmodels: [m]\ninput: x.csv\nshard_row: 3\n")
    shown = dim("submit", tmp_path / "spec.yaml", "--json")
    assert shown.code == 1
    assert "shard_row" in shown.record["error"]["message"] and "shard_rows" in shown.record["error"]["hint"]


def test_a_batch_that_is_not_there_cannot_be_resumed(dim: Dim) -> None:
    shown = dim("resume", "no-such-batch")
    assert shown.code == 1 and "no-such-batch" in shown.err


def test_a_full_disk_is_one_line_and_corrupts_nothing(
    dim: Dim, write_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    require: Callable[[bool, str, str], None],
) -> None:  # fmt: skip
    home = tmp_path / "home"
    home.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", home], capture_output=True, check=False)
    require(mounted.returncode == 0, "the right to mount a small tmpfs", "run the tests as root on Linux")
    try:
        monkeypatch.setenv("DIM_HOME", str(home))
        small = write_model(tmp_path / "small")
        assert dim("model", "add", small).code == 0
        large = write_model(tmp_path / "large", name="large", files={"table": "weights.bin"})
        (large / "weights.bin").write_bytes(np.random.default_rng(1).bytes(8 << 20))
        shown = dim("model", "add", large, "--json")
        assert shown.code == 1
        assert shown.record["error"]["code"] == "content_unavailable"
        assert re.search(r"disk|space", shown.record["error"]["message"]), shown.err
        listed = dim("model", "list", "--json").record["models"]
        assert [model["name"] for model in listed] == ["echo-a"]
        assert dim("model", "verify", "echo-a").code == 0
        assert json.loads((small / "dim-model.json").read_text())["name"] == "echo-a"
    finally:
        subprocess.run(["umount", "-l", home], check=True)
