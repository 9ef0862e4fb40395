"""``streamssm run`` on text: scores and continuations, byte for byte, however the text was cut."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from cli_tools import PROGRAM
from voice_toy import TOYS

# voice_toy put the folder of the runtime's tests on the path
from language_toy import LanguageToy  # isort: skip
from made_tokenizers import content  # isort: skip
from tokenizers import Tokenizer  # isort: skip

import streamssm
from streamssm.scoring import score

TEXT = "The quick brown 🙂 fox doesn't\n\n jump: 12345 漢字. "
DATA = {"bytes": TEXT.encode(), "llama3": TEXT.encode(), "llama2": TEXT.encode(), "dna": b"ACGTNacgtu\nRR"}


@pytest.fixture(scope="module")
def written(made):
    """Language models by name in the folder of the toys, and the texts beside them."""
    toys = {"bytes": LanguageToy(256, block=4), "dna": LanguageToy(5, "nucleotides", end=(1, 2, 4))}
    for name in ("llama3", "llama2"):
        size = Tokenizer.from_str(content(name)).get_vocab_size() + 2
        toys[name] = LanguageToy(size, "tokenizer", content(name).encode(), block=3)
    for name, toy in toys.items():
        toy.write(made / f"{name}-lm.onnx")
        (made / f"{name}.txt").write_bytes(DATA[name])
    return made


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("name", DATA)
def test_text_is_scored_token_by_token(call, written, name):
    found = lines(call("run", f"{name}-lm.onnx", f"{name}.txt").stdout)
    scores, totals = score(streamssm.load(written / f"{name}-lm.onnx"), DATA[name])
    assert [line["token"] for line in found[:-1]] == [entry.token for entry in scores]
    assert list(found[0]) == ["index", "token", "text", "log_likelihood"]
    for line, entry in zip(found[:-1], scores, strict=True):
        wanted = entry.log_likelihood
        assert line["log_likelihood"] == (None if wanted is None else round(wanted, 6))
    if name != "dna":
        assert "".join(line["text"] for line in found[:-1]).rstrip() == TEXT.rstrip()
    assert found[-1]["tokens"] == len(scores)
    assert found[-1]["perplexity"] == round(totals.perplexity, 6)
    assert list(found[-1])[2:] == ["bytes", "log_likelihood", "mean_nll", "perplexity", "bits_per_byte"]


@pytest.mark.parametrize("name", DATA)
def test_any_chunk_and_any_pipe_print_the_same_bytes(call, written, name, monkeypatch):
    run = ("run", f"{name}-lm.onnx")
    expected = call(*run, f"{name}.txt").stdout_bytes
    assert call(*run, "-", stdin=DATA[name]).stdout_bytes == expected
    for chunk in (1, 7, 1000):
        assert call(*run, f"{name}.txt", "--chunk", chunk).stdout_bytes == expected
    monkeypatch.setattr("streamssm.sources.text._READ", 1)  # a pipe that has a byte at a time
    assert call(*run, "-", stdin=DATA[name]).stdout_bytes == expected
    assert call(*run, f"{name}.txt", "--input-format", "text").stdout_bytes == expected


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("cut", [0, 1, 5, 18, 19, 40])
def test_a_saved_score_continues_in_the_middle_of_anything(call, written, name, cut):
    run, data = ("run", f"{name}-lm.onnx", "-"), DATA[name]
    whole = call(*run, stdin=data).stdout_bytes
    first = call(*run, "--save-state", "t.state", stdin=data[:cut])
    middle = call(*run, "--resume", "t.state", "--save-state", "t.state", "--chunk", 2)
    rest = call(*run, "--resume", "t.state", stdin=data[cut:])
    assert rest.exit_code == 0, rest.stderr
    assert first.stdout_bytes + middle.stdout_bytes + rest.stdout_bytes == whole


def test_items_of_a_model_of_text(call, written):
    found = lines(call("run", "llama3-lm.onnx", "llama3.txt", "--emit", "items").stdout)
    scored = lines(call("run", "llama3-lm.onnx", "llama3.txt").stdout)
    assert len(found) == len(scored) - 1
    row = np.array(found[4]["logits"])
    likelihood = row[scored[5]["token"]] - np.log(np.exp(row).sum())
    assert likelihood == pytest.approx(scored[5]["log_likelihood"], abs=1e-4)


def test_tokens_as_numbers_are_scored_too(call, written):
    ids = [line["token"] for line in lines(call("run", "llama3-lm.onnx", "llama3.txt").stdout)[:-1]]
    np.save(written / "ids.npy", np.array(ids))
    (written / "ids.csv").write_text("\n".join(map(str, ids)))
    found = lines(call("run", "llama3-lm.onnx", "ids.npy").stdout)
    assert [line["token"] for line in found[:-1]] == ids
    assert "".join(line["text"] for line in found[:-1]) == TEXT
    assert found[-1]["bits_per_byte"] is None
    other = call("run", "llama3-lm.onnx", "ids.csv", "--input-format", "csv")
    assert lines(other.stdout) == found


@pytest.mark.parametrize("name", DATA)
def test_a_continuation(call, written, name):
    run = ("run", f"{name}-lm.onnx", f"{name}.txt", "--generate", 20, "--seed", 3, "--temperature", 0.9)
    found = lines(call(*run).stdout)
    if name == "dna":
        assert found[-2]["token"] in (1, 2, 4)
        assert found[-1] == {"generated": len(found) - 1, "stopped": "end"}
    else:
        assert len(found) == 21
        assert not found[-1].pop("rest", "").strip("\ufffd")  # what was no whole character at the end
        assert found[-1] == {"generated": 20, "stopped": "length"}
    text = call(*run, "--emit", "text").stdout_bytes.decode()
    assert text.startswith("".join(line["text"] for line in found[:-1]))
    scored = call("run", f"{name}-lm.onnx", f"{name}.txt").stdout
    assert found[0]["index"] == len(lines(scored)) - 1
    assert call(*run, "--chunk", 1).stdout == call(*run, "--chunk", 99).stdout
    assert call(*run[:-3], 4).stdout != call(*run[:-3], 5).stdout


@pytest.mark.parametrize("name", ["bytes", "llama3", "llama2"])
def test_a_saved_continuation_goes_on_with_the_same_draws(call, written, name):
    run = ("run", f"{name}-lm.onnx", "-", "--top-k", 50, "--seed", 9)
    whole = call(*run, "--generate", 12, stdin=DATA[name]).stdout_bytes
    first = call(*run, "--generate", 5, "--save-state", "g.state", stdin=DATA[name])
    more = call("run", f"{name}-lm.onnx", "-", "--top-k", 50, "--generate", 7, "--resume", "g.state")
    assert more.exit_code == 0, more.stderr
    drawn = first.stdout_bytes + more.stdout_bytes
    assert [line.get("token") for line in lines(drawn.decode())[:-1]] == [
        line.get("token") for line in lines(whole.decode())[:-1]
    ]
    assert drawn.splitlines()[:-1] == whole.splitlines()[:-1]


def test_a_scored_text_is_continued_after_it_was_saved(call, written):
    run = ("run", "llama3-lm.onnx", "-")
    whole = call(*run, "--generate", 6, stdin=DATA["llama3"]).stdout_bytes
    call(*run, "--save-state", "s.state", stdin=DATA["llama3"])
    assert call(*run, "--resume", "s.state", "--generate", 6).stdout_bytes == whole


def test_text_appears_as_it_is_drawn(process, written):
    running = process("run", "bytes-lm.onnx", "-", "--generate", 100000, "-q")
    running.stdin.write(b"The")
    running.stdin.close()
    assert json.loads(running.stdout.readline())["index"] == 3
    running.terminate()
    rest = running.stdout.read().splitlines()
    assert json.loads(rest[-1])["stopped"] == "signal"
    assert running.wait(timeout=20) == 130
    running.stderr.close()
    running.stdout.close()


def test_a_signal_scores_what_has_come(process, written):
    running = process("run", "llama3-lm.onnx", "-", "-q")
    running.stdin.write(b"The fox and the")
    running.stdin.flush()
    first = json.loads(running.stdout.readline())
    assert first["index"] == 0
    running.terminate()
    found = [json.loads(line) for line in running.stdout.read().splitlines()]
    assert running.wait(timeout=20) == 130
    assert "".join(line["text"] for line in [first, *found[:-1]]) == "The fox and the"
    for pipe in (running.stdin, running.stdout, running.stderr):
        pipe.close()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("voice.onnx", "speech.wav", "--generate", 5), 2, "takes samples"),
        (("voice.onnx", "speech.wav", "--emit", "tokens"), 2, "first output is the logits of the next one"),
        (("tokens.onnx", "-", "--emit", "tokens"), 2, "gives [2] logits for a vocabulary of 5"),
        (("tokens.onnx", "-", "--generate", 5), 2, "gives [2] logits for a vocabulary of 5"),
        (("llama3-lm.onnx", "-", "--top-k", 5), 2, "--top-k say how to continue"),
        (("llama3-lm.onnx", "-", "--emit", "text"), 2, "give its length with --generate"),
        (("llama3-lm.onnx", "-", "--generate", 5, "--emit", "items"), 2, "leave --emit items out"),
        (("llama3-lm.onnx", "-", "--generate", 0), 2, "0 is not in the range"),
        (("llama3-lm.onnx", "-", "--generate", 1, "--top-p", 0), 2, "0<x<=1"),
        (("llama3-lm.onnx", "-", "--generate", 1, "--temperature", "nan"), 2, "temperature"),
        (("llama3-lm.onnx", "wrong.txt"), 1, "wrong.txt: byte 4 of the text is 0xff, which is not UTF-8"),
        (("llama3-lm.onnx", "half.txt"), 1, "half.txt: byte 4 of the text is 0xf0"),
        (("dna-lm.onnx", "wrong.txt"), 1, "wrong.txt: byte 4 of the sequence is 'ÿ'"),
        (("bytes-lm.onnx", "-", "--generate", 1), 1, "the prompt is empty"),
        (("bytes-lm.onnx", "bytes.txt", "--resume", "v.state"), 1, "voice"),
    ],
)
def test_errors_are_one_line(refused, call, written, arguments, code, message):
    (written / "wrong.txt").write_bytes(b"abcd\xffef")
    (written / "half.txt").write_bytes(b"abcd\xf0\x9f")
    call("run", "voice.onnx", "speech.wav", "--save-state", "v.state")
    assert message in refused("run", *arguments, "-q", code=code)


def test_scores_and_items_do_not_mix_in_a_saved_stream(call, refused, written):
    call("run", "bytes-lm.onnx", "bytes.txt", "--save-state", "scored.state")
    line = refused("run", "bytes-lm.onnx", "bytes.txt", "--resume", "scored.state", "--emit", "items", code=1)
    assert "another --emit" in line


def test_without_the_library_the_remedy_is_named(written):
    code = "import sys; sys.modules['tokenizers'] = None; from streamssm.cli import main; main()"
    command = [sys.executable, "-c", code, "run", "llama3-lm.onnx", "llama3.txt"]
    found = subprocess.run(command, cwd=written, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "pip install 'streamssm[text]'" in found.stderr
    command[-2:] = ["bytes-lm.onnx", "bytes.txt"]
    assert subprocess.run(command, cwd=written, capture_output=True, check=False).returncode == 0


def test_bytes_of_a_model_without_logits_are_read_as_they_are(written, monkeypatch):
    from streamssm.manifest import Input
    from streamssm.sources import Request, open_source

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"n\xc3\xa9")))
    source = open_source("-", Request(Input("x", "tokens", "int64", vocabulary=256)))
    assert source.read(9).tolist() == [110, 195, 169]
    assert not len(source.read(9))


def test_a_program_that_reads_a_text_slowly(written):
    """Bytes one by one through a real pipe: tokens come before the end of the text."""
    command = [*PROGRAM, "run", "llama2-lm.onnx", "-", "-q"]
    with subprocess.Popen(command, cwd=written, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        for byte in "漢字 fox and ".encode():
            running.stdin.write(bytes([byte]))
            running.stdin.flush()
        first = [json.loads(running.stdout.readline()) for _ in range(3)]
        running.stdin.write(b"more")
        running.stdin.close()
        rest = [json.loads(line) for line in running.stdout]
    assert "".join(line["text"] for line in [*first, *rest[:-1]]) == "漢字 fox and more"


def test_toys_without_an_alphabet_still_print_items(call, written):
    assert "tokens" in TOYS
    found = lines(call("run", "tokens.onnx", "-", stdin=b"0\n3\n").stdout)
    assert list(found[0]) == ["index", "logits"]
