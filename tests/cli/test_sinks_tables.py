"""Rows as tables: the same numbers in csv, parquet and plain text, with the columns that rows may have."""

import io

import numpy as np
import pytest
from sink_tools import make, read_csv, read_jsonl, read_parquet, write
from toy_models import TOYS
from voice_toy import voice_toy

from streamssm.errors import OutputError
from streamssm.manifest import Input, Manifest, Output
from streamssm.rows import ItemRows
from streamssm.rows.base import Column


def outputs_of(toy, items, rng):
    """Random outputs of the shapes that a model gives, awkward numbers among them."""
    found = {}
    for output in toy.manifest.outputs:
        count = items * output.ratio[0] // output.ratio[1]
        values = rng.standard_normal((count, *output.shape)).astype(np.float32)
        values.flat[:: max(1, values.size // 5)] = np.float32(0.1)
        if values.size > 3:
            values.flat[3] = np.nan
        found[output.name] = values
    return found


def numbers(rows, keys):
    """A table of the rows' numbers, nan where there is none."""
    table = []
    for row in rows:
        cells = [np.array(row.get(key, np.nan), np.float64).ravel() for key in keys]
        table.append(np.concatenate(cells))
    return table


@pytest.mark.parametrize("toy", [*TOYS, "voice"])
def test_items_are_the_same_numbers_in_every_table(toy):
    made = voice_toy() if toy == "voice" else TOYS[toy]()
    rows = ItemRows(made.manifest)
    pushed = rows.push(outputs_of(made, 96 * made.manifest.input.hop, np.random.default_rng(7)))
    plain = pushed + rows.flush()
    options = {"rows": rows, "manifest": made.manifest}
    keys = [column.name for column in rows.columns]
    parquet = read_parquet(write(make("parquet", **options), [plain[:5], plain[5:]]))
    assert [list(row) for row in parquet] == [list(row) for row in plain]
    for found, row in zip(parquet, plain, strict=True):
        for key in row:
            kind = np.float32 if key not in ("time", "index") else np.float64
            np.testing.assert_array_equal(np.array(found[key], kind), np.array(row[key], kind))
    shapes = {column.name: column.shape for column in rows.columns}
    full = {key: np.full(shape, np.nan) for key, shape in shapes.items()}
    expected = numbers([full | row for row in plain], keys)
    csv_lines = write(make("csv", **options), [plain]).decode().splitlines()
    assert csv_lines[0].count(",") + 1 == sum(int(np.prod(shape)) for shape in shapes.values()) + 3
    from_csv = [[float(cell or "nan") for cell in line.split(",")[:-3]] for line in csv_lines[1:]]
    np.testing.assert_array_equal(from_csv, expected)
    np.testing.assert_array_equal(
        np.loadtxt(io.BytesIO(write(make("txt", **options), [plain])), ndmin=2), np.array(expected)
    )


def test_a_data_frame_library_reads_the_csv_with_its_types():
    arrow = pytest.importorskip("pyarrow.csv")
    rows = [
        {"event": "start", "label": 'a "b", c', "time": 0.5, "index": 5},
        {"gap": "dropped", "items": 3, "seconds": None, "time": 0.7},
        {"event": "end", "label": 'a "b", c', "time": 1.0, "index": 10, "cut": True},
    ]
    table = arrow.read_csv(io.BytesIO(write(make("csv"), [rows])))
    assert table.column("time").to_pylist() == [0.5, 0.7, 1.0]
    assert table.column("items").to_pylist() == [None, 3, None]
    assert table.column("cut").to_pylist() == [None, None, True]
    assert table.column("label").to_pylist() == ['a "b", c', "", 'a "b", c']


def test_parquet_writes_row_groups_as_they_fill(monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("streamssm.sinks.parquet._CELLS", 80)
    rows = [{"event": "start", "label": "x", "time": i / 8, "index": i} for i in range(33)]
    sink = make("parquet")
    early = sink.begin() + sink.rows(rows[:25])
    assert len(early) > 300
    data = early + sink.rows(rows[25:]) + sink.end()
    file = parquet.ParquetFile(io.BytesIO(data))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [10, 10, 10, 3]
    assert read_parquet(data) == rows


@pytest.mark.parametrize("name", ["csv", "parquet"])
def test_no_rows_are_still_a_table(name):
    data = write(make(name), [])
    if name == "csv":
        assert data == b"event,label,time,index,cut,gap,items,seconds\n"
    else:
        assert read_parquet(data) == []


class MadeRows:
    """Rows of some kind, for what a table does with them."""

    kind = "decisions"
    columns = (Column("label", "text"), Column("probability", "number"), Column("decided", "flag"))


def test_rows_of_another_kind_make_tables_too():
    rows = [
        {"record": "read 1", "label": "virus", "probability": 0.99, "decided": True},
        {"record": "read 2", "label": "host", "probability": 0.5, "decided": False},
    ]
    for name, read in (("csv", read_csv), ("parquet", read_parquet), ("jsonl", read_jsonl)):
        assert read(write(make(name, MadeRows()), [rows[:1], rows[1:]])) == rows
    assert write(make("txt", MadeRows()), [rows]) == b"read 1\tvirus\t0.99\ttrue\nread 2\thost\t0.5\tfalse\n"
    gap = {"record": "read 2", "gap": "invalid", "items": 1, "time": 0.25}  # by the clock, which rows lack
    for name, read in (("csv", read_csv), ("parquet", read_parquet)):
        assert read(write(make(name, MadeRows()), [[gap, *rows]])) == [gap, *rows]
        with pytest.raises(OutputError, match="no column for other"):
            write(make(name, MadeRows()), [[{"label": "x", "other": 1}]])


def test_a_square_of_numbers_and_names_that_are_ours():
    outputs = (
        Output("items", "features", (2, 3)),
        Output("b", "probability", (2,), labels=("gap", "x")),
    )
    spec = Input("i", "features", "float32", rate=1.0)
    manifest = Manifest(1, "m", "0" * 64, "t", spec, outputs, (), 1)
    made = ItemRows(manifest)
    square = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    rows = made.push({"items": square, "b": np.array([[0.5, 0.25], [1, 0]], np.float32)})
    assert rows[0] == {"time": 0.0, "output.items": square[0].tolist(), "b.gap": 0.5, "b.x": 0.25}
    rows.append({"gap": "dropped", "items": 7, "seconds": 7.0, "time": 2.0})
    assert read_parquet(write(make("parquet", made, manifest), [rows])) == rows
    lines = write(make("csv", made, manifest), [rows]).decode().splitlines()
    places = [f"output.items.{row}.{column}" for row in (0, 1) for column in (0, 1, 2)]
    assert lines[0].split(",") == ["time", *places, "b.gap", "b.x", "gap", "items", "seconds"]
    assert lines[2] == "1.0,6.0,7.0,8.0,9.0,10.0,11.0,1.0,0.0,,,"
    assert lines[3] == "2.0,,,,,,,,,dropped,7,7.0"
    assert write(make("txt", made, manifest), [rows]).splitlines()[1:] == [
        lines[2][:-3].replace(",", "\t").encode()
    ]
