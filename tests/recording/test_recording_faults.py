"""Broken files are refused by name; a broken writer or disk loses nothing it had accepted."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from recording_parts import prompt_row

from nae_monitor.errors import ConfigurationError, RecordingError, VectorError
from nae_monitor.recording import Recording, RecordingWriter, RequestRecord, open_recordings
from nae_monitor.records import (
    Activation,
    Coverage,
    Decoding,
    Finding,
    FindingState,
    Phase,
    Request,
    SampleReason,
    Severity,
    Span,
    VerdictState,
)

D_MODEL = 4
CANARY = "sphinx-of-black-quartz"
KEY = b"k" * 32


def activation(position: int, request_id: str = "r", text: str = "tok") -> Activation:
    request = Request(request_id, request_id, "m", attributes={"note": text})
    return Activation(
        request,
        position,
        7,
        text,
        Phase.PROMPT,
        3,
        torch.full((D_MODEL,), float(position)),
        SampleReason.RANDOM,
        {"direction": 0.5},
    )


def decoding(text: str = "says") -> Decoding:
    return Decoding(text, True, 0.9, 0.5, 1, 256, "nla", 9, 0.01)


def request_record(text: str = "tok") -> RequestRecord:
    return RequestRecord(
        request=Request("r", "r", "m", session_id="s", attributes={"note": text}),
        prompt_text=text,
        prompt_tokens=1,
        output_tokens=1,
        coverage=Coverage(2, 2, 2, 2, 2, 0, {}),
        state=VerdictState.ALERT,
        prompt_token_ids=(4242424242,),
        output_token_ids=(4242424242,),
        prompt_token_texts=(text,),
        output_token_texts=(text,),
    )


def finding(text: str = "says") -> Finding:
    return Finding(
        "r",
        1,
        "id",
        "name",
        "1",
        "title",
        Severity.HIGH,
        FindingState.MATCH,
        (Span("sel", "explanation", 0, len(text), text),),
    )


def write_run(path: Path, *, rows: int = 5, content: str = "full", text: str = "tok") -> None:
    with RecordingWriter(
        path,
        manifest={"model": "m", "layer": 3},
        d_model=D_MODEL,
        content=content,  # type: ignore[arg-type]
        hmac_key=KEY,
        rotate_rows=2,
    ) as writer:
        for position in range(rows):
            writer.write_activation(activation(position, text=text), decoding(text))
        writer.write_request(request_record(text))
        writer.write_findings([finding(text)])


def read_all(path: Path) -> tuple[list[object], ...]:
    recording = Recording.open(path)
    rows = [
        (row.activation.position, row.activation.vector.tolist(), row.decoding)
        for row in recording.activations()
    ]
    return rows, list(recording.requests()), list(recording.findings())


PARTS = ["activations-00001.parquet", "requests-00000.parquet"]


@pytest.mark.parametrize("name", [*PARTS, "manifest.json", "findings.jsonl"])
def test_a_file_cut_short_anywhere_is_refused_by_name(tmp_path: Path, name: str) -> None:
    write_run(tmp_path / "run")
    file = tmp_path / "run" / name
    whole = file.read_bytes()
    for size in {0, 1, 4, len(whole) // 3, len(whole) // 2, len(whole) - 9, len(whole) - 1}:
        if name == "manifest.json" and size == len(whole) - 1:
            continue  # only the newline at the end is gone
        file.write_bytes(whole[:size])
        with pytest.raises(RecordingError, match=name):
            read_all(tmp_path / "run")


@pytest.mark.parametrize("name", PARTS)
def test_one_flipped_bit_anywhere_is_refused_by_name(tmp_path: Path, name: str) -> None:
    write_run(tmp_path / "run")
    file = tmp_path / "run" / name
    whole = file.read_bytes()
    places = random.Random(5).sample(range(len(whole)), 60)
    for place in [0, len(whole) - 1, *places]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        file.write_bytes(damaged)
        with pytest.raises(RecordingError, match=name):
            read_all(tmp_path / "run")


def test_flipped_bits_in_small_files_are_refused_or_change_nothing(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    before = read_all(tmp_path / "run")
    for name in ("seals.jsonl", "findings.jsonl"):
        file = tmp_path / "run" / name
        whole = file.read_bytes()
        for place in range(0, len(whole), 3):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << (place % 7)
            file.write_bytes(damaged)
            try:
                after = read_all(tmp_path / "run")
            except RecordingError:
                continue
            assert after == before
        file.write_bytes(whole)


def test_foreign_parquet_is_refused_by_name(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "run" / "activations-00009.parquet")
    with pytest.raises(RecordingError, match="activations-00009"):
        Recording.open(tmp_path / "run")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(RecordingError, match=r"other\.parquet: has no column 'activation_vector'"):
        Recording.open(tmp_path / "other.parquet")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_reference_file_is_refused_by_name(tmp_path: Path, share: float) -> None:
    kind = pa.list_(pa.float32(), 2)
    table = pa.table({"activation_vector": pa.array([[1.0, 2.0]] * 50, kind)})
    pq.write_table(table, tmp_path / "v.parquet")
    whole = (tmp_path / "v.parquet").read_bytes()
    (tmp_path / "v.parquet").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(RecordingError, match=r"v\.parquet"):
        list(Recording.open(tmp_path / "v.parquet").activations())


def test_damage_inside_a_reference_file_names_its_row_group(tmp_path: Path) -> None:
    kind = pa.list_(pa.float32(), 64)
    values = torch.randn(40, 64).tolist()
    table = pa.table({"activation_vector": pa.array(values, kind)})
    path = tmp_path / "v.parquet"
    pq.write_table(
        table,
        path,
        row_group_size=20,
        write_page_checksum=True,
        use_dictionary=False,
        compression="none",
    )
    second = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[second + 500] ^= 1
    path.write_bytes(data)
    with pytest.raises(RecordingError, match=r"v\.parquet, row group 1"):
        list(Recording.open(path).activations())


def test_a_ragged_vector_column_is_refused(tmp_path: Path) -> None:
    table = pa.table({"activation_vector": pa.array([[1.0, 2.0], [1.0]], pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "v.parquet")
    with pytest.raises(RecordingError, match="row group 0"):
        list(Recording.open(tmp_path / "v.parquet").activations())


def test_a_missing_manifest_or_file_is_refused_by_name(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "run" / "activations-00001.parquet").unlink()
    with pytest.raises(RecordingError, match=r"activations-00001\.parquet: missing"):
        Recording.open(tmp_path / "run")
    (tmp_path / "run" / "manifest.json").unlink()
    for opener in (Recording.open, lambda path: open_recordings([path])):
        with pytest.raises(RecordingError, match=r"no manifest\.json"):
            opener(tmp_path / "run")


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"format_version": 99},
        {"d_model": 0},
        {"d_model": "4"},
        {"d_model": 5},
        {"vector_dtype": "float8"},
        {"vector_dtype": "float32"},
        {"content": "all"},
    ],
)
def test_a_manifest_that_is_not_true_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    write_run(tmp_path / "run")
    path = tmp_path / "run" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RecordingError, match="run"):
        read_all(tmp_path / "run")


@pytest.mark.parametrize("name", ["../x.parquet", "/etc/passwd", ".hidden", "a\\b"])
def test_a_seal_never_points_outside_its_directory(tmp_path: Path, name: str) -> None:
    write_run(tmp_path / "run")
    line = json.dumps({"file": name, "rows": 1, "bytes": 1, "sha256": "0"})
    (tmp_path / "run" / "seals.jsonl").write_text(line + "\n")
    with pytest.raises(RecordingError, match=r"seals\.jsonl:1"):
        Recording.open(tmp_path / "run")


@pytest.mark.parametrize("content", ["hash", "none"])
def test_withheld_content_is_in_no_file(tmp_path: Path, content: str) -> None:
    write_run(tmp_path / "run", content=content, text=CANARY)
    plain = CANARY.encode()
    for file in (tmp_path / "run").iterdir():
        data = file.read_bytes()
        if file.suffix == ".parquet":
            data += repr(pq.ParquetFile(file).read().to_pylist()).encode()
        assert plain not in data, file.name
        assert b"4242424242" not in data, file.name
    recording = Recording.open(tmp_path / "run")
    rows = list(recording.activations())
    assert rows[1].activation.vector.tolist() == [1.0] * D_MODEL  # vectors are always there
    assert rows[1].readable_decoding is None
    assert rows[1].decoding is not None
    assert (rows[1].activation.token, rows[1].activation.token_id) == ("", -1)
    (record,) = recording.requests()
    assert record.prompt_text is record.output_text is record.prompt_token_ids is None
    assert (record.prompt_tokens, record.output_tokens) == (1, 1)
    assert dict(record.request.attributes) == {}


def test_hashes_are_keyed_and_tokens_are_hashed_with_their_place(tmp_path: Path) -> None:
    write_run(tmp_path / "run", content="hash", text="the")
    columns = ["token", "explanation"]
    rows = list(Recording.open(tmp_path / "run").activation_columns(columns))
    assert len({row["explanation"] for row in rows}) == 1
    assert len({row["token"] for row in rows}) == len(rows)
    with pytest.raises(ConfigurationError, match="no key"):
        RecordingWriter(tmp_path / "b", manifest={}, d_model=1, content="hash")


def test_an_unwritable_directory_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        RecordingWriter(tmp_path / "file" / "run", manifest={}, d_model=1, content="none")
    with pytest.raises(ConfigurationError, match="vector_dtype"):
        RecordingWriter(
            tmp_path / "x", manifest={}, d_model=1, content="none", vector_dtype="float8"
        )
    write_run(tmp_path / "run")
    with pytest.raises(ConfigurationError, match="already holds a recording"):
        RecordingWriter(tmp_path / "run", manifest={}, d_model=1, content="none")


def test_a_vector_of_another_width_is_refused(tmp_path: Path) -> None:
    writer = RecordingWriter(tmp_path / "run", manifest={}, d_model=9, content="none")
    with pytest.raises(VectorError, match=r"\[4\], not \[9\]"):
        writer.write_activation(activation(0), None)
    writer.close()


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from nae_monitor.recording import RecordingWriter
from nae_monitor.records import Activation, Phase, Request, SampleReason
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
now = [0.0]
writer = RecordingWriter(sys.argv[1], manifest={}, d_model=64, vector_dtype="float32",
                         content="full", rotate_rows=20, clock=lambda: now[0])
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
accepted, refused = 0, 0
for position in range(200):
    if position == 50:  # from here on no file can be written, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    if position == 150:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        now[0] += 5.0
    row = Activation(Request("r", "r", "m"), position, 1, "t", Phase.PROMPT, 1,
                     torch.full((64,), float(position)), SampleReason.RANDOM)
    try:
        writer.write_activation(row, None)
        accepted += 1
    except OSError:
        refused += 1
writer.close()
print(accepted, refused)
"""


def test_a_full_disk_refuses_rows_and_loses_none_it_took(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    accepted, refused = map(int, done.stdout.split())
    recording = Recording.open(tmp_path / "run")
    positions = [row.activation.position for row in recording.activations()]
    assert recording.complete
    assert refused > 0
    assert len(positions) == accepted == 200 - refused
    assert len(set(positions)) == accepted


def test_a_directory_that_vanishes_raises_oserror_from_the_write(tmp_path: Path) -> None:
    writer = RecordingWriter(tmp_path / "run", manifest={}, d_model=D_MODEL, content="none")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(OSError, match="No such file"):
        writer.write_activation(activation(0), None)


KILLED = """
import sys, torch
from nae_monitor.recording import RecordingWriter
from nae_monitor.records import Activation, Phase, Request, SampleReason
writer = RecordingWriter(sys.argv[1], manifest={}, d_model=16, content="none", rotate_rows=10)
for position in range(10**9):
    row = Activation(Request("r", "r", "m"), position, 1, "t", Phase.PROMPT, 1,
                     torch.ones(16), SampleReason.RANDOM)
    writer.write_activation(row, None)
    print(position, flush=True)
"""


def test_a_killed_writer_loses_at_most_its_open_file_and_the_reader_names_it(
    tmp_path: Path,
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    written = 0
    for line in process.stdout:
        written = int(line) + 1
        if written >= 57:
            break
    process.send_signal(signal.SIGKILL)
    written = max([written, *(int(line) + 1 for line in process.stdout if line.endswith("\n"))])
    process.wait()
    recording = Recording.open(tmp_path / "run")
    positions = [row.activation.position for row in recording.activations()]
    assert not recording.complete
    assert positions == list(range(len(positions)))
    assert written - len(positions) <= 11
    assert all(name.startswith("activations-") for name in recording.unfinished)
    assert len(recording.unfinished) <= 1
    if len(positions) < written:
        assert len(recording.unfinished) == 1


def test_a_file_sealed_but_not_yet_renamed_is_read(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    before = read_all(tmp_path / "run")
    last = tmp_path / "run" / "activations-00002.parquet"
    last.rename(last.with_name(last.name + ".open"))
    assert read_all(tmp_path / "run") == before
    assert Recording.open(tmp_path / "run").unfinished == ()


def test_a_half_written_finding_of_a_crash_is_left_out(tmp_path: Path) -> None:
    writer = RecordingWriter(tmp_path / "run", manifest={}, d_model=1, content="full")
    writer.write_findings([finding()])
    with (tmp_path / "run" / "findings.jsonl").open("a") as stream:
        stream.write('{"request_id":"r","posi')
    assert list(Recording.open(tmp_path / "run").findings()) == [finding()]
    writer.abandon()


def interrupted(path: Path) -> None:
    with RecordingWriter(path, manifest={}, d_model=D_MODEL, content="none") as writer:
        writer.write_activation(activation(0), None)
        raise KeyboardInterrupt


def test_an_interrupted_writer_reads_as_incomplete(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "run")
    recording = Recording.open(tmp_path / "run")
    assert not recording.complete
    assert len(list(recording.activations())) == 1


def test_files_are_finished_by_age_also_when_nothing_is_written(tmp_path: Path) -> None:
    now = [0.0]
    writer = RecordingWriter(
        tmp_path / "run",
        manifest={},
        d_model=D_MODEL,
        content="none",
        rotate_s=30.0,
        clock=lambda: now[0],
    )
    writer.write_activation(activation(0), None)
    assert Recording.open(tmp_path / "run").unfinished == ("activations-00000.parquet.open",)
    now[0] = 31.0
    writer.tick()
    recording = Recording.open(tmp_path / "run")
    assert recording.unfinished == ()
    assert len(list(recording.activations())) == 1
    writer.close()
    writer.close()


def test_several_threads_may_write(tmp_path: Path) -> None:
    with RecordingWriter(
        tmp_path / "run", manifest={}, d_model=D_MODEL, content="none", rotate_rows=7
    ) as writer:

        def work(name: str) -> None:
            for position in range(40):
                writer.write_activation(activation(position, name), None)

        threads = [threading.Thread(target=work, args=(f"r{i}",)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    rows = [
        (row.activation.request.request_id, row.activation.position)
        for row in Recording.open(tmp_path / "run").activations()
    ]
    assert sorted(rows) == sorted((f"r{i}", p) for i in range(4) for p in range(40))


def test_iterating_a_long_recording_holds_one_file_at_a_time(tmp_path: Path) -> None:
    width, rows = 64, 20_000
    with RecordingWriter(
        tmp_path / "run", manifest={}, d_model=width, content="none", rotate_rows=1000
    ) as writer:
        wide = prompt_row(torch.ones(width))
        for _ in range(rows):
            writer.write_activation(wide, None)
    recording = Recording.open(tmp_path / "run")
    tracemalloc.start()
    base = pa.total_allocated_bytes()
    arrow_peak = 0
    for number, _ in enumerate(recording.activations()):
        if number % 500 == 0:
            arrow_peak = max(arrow_peak, pa.total_allocated_bytes() - base)
    python_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number + 1 == rows
    assert arrow_peak < 4 * 2**20
    assert python_peak < 16 * 2**20  # 20,000 rows as Python values would be over 60 MiB


def test_a_row_that_cannot_be_encoded_does_not_stop_the_recording(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "run", manifest={}, d_model=D_MODEL, content="none") as writer:
        writer.write_activation(activation(2**70), None)
        with pytest.raises(RecordingError, match="1 rows cannot be encoded"):
            writer.flush()
        writer.write_activation(activation(1), None)
    assert len(list(Recording.open(tmp_path / "run").activations())) == 1
