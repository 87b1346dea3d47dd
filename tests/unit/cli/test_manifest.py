"""Documents are read one by one, values are what the user wrote, and every error says where."""

import json
import string
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pwm.cli.manifest import Document, parse, read_documents
from pwm.cli.yamlreader import ManifestError, plain_value


def _one(text: str) -> dict[str, Any]:
    (found,) = parse(text, "f.yaml")
    assert isinstance(found, Document), found
    return found.content


def _error(text: str) -> ManifestError:
    (found,) = (entry for entry in parse(text, "f.yaml") if isinstance(entry, ManifestError))
    return found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"), ("off", "off"), ("yes", "yes"), ("No", "No"), ("y", "y"),
        ("true", True), ("True", True), ("FALSE", False), ("null", None), ("~", None), ("", None),
        ("5", 5), ("-3", -3), ("0", 0), ("010", "010"), ("0o17", "0o17"), ("0x1F", "0x1F"), ("+5", "+5"),
        ("1.5", 1.5), ("1.10", "1.10"), ("1e3", "1e3"), (".5", ".5"), ("1_000", "1_000"), (".inf", ".inf"),
        ("12:30", "12:30"), ("1:2:3", "1:2:3"), ("2024-01-01", "2024-01-01"), ("2024-01-01T00:00:00Z",) * 2,
        ("9007199254740992", 9007199254740992), ("9007199254740993", "9007199254740993"),
        ("32GiB", "32GiB"), ("500m", "500m"), ("=", "="), ("<<", "<<"), ("pwm.all", "pwm.all"),
        ("'5'", "5"), ('"true"', "true"), ("!!str 5", "5"), ("!!int 5", 5), ("|\n  a\n  b\n", "a\nb\n"),
    ],
)  # fmt: skip
def test_a_value_is_what_yaml_1_2_says_and_a_number_only_if_it_prints_the_same(text: str, value: object) -> None:
    found = _one(f"a: {text}\n")["a"]
    assert (type(found), found) == (type(value), value)


@given(st.one_of(st.integers(), st.floats()))
def test_a_number_of_plain_text_always_prints_as_that_text(number: float) -> None:
    value = plain_value(repr(number))
    assert isinstance(value, str | int | float)
    assert str(value) == repr(number)


BAD = {
    "duplicate key": ("a: 1\nb: 2\na: 3\n", "3:1", "'a' is there twice; the first is in line 1"),
    "duplicate key deep down": ("a:\n  b: {c: 1, d: 2, c: 3}\n", "2:19", "'c' is there twice"),
    "tab": ("a:\n\tb: 1\n", "2:1", "a tab; YAML is indented with spaces only"),
    "open bracket": ("a: [1, 2\nb: 3\n", "1:4", "a bracket or brace is opened here and not closed"),
    "open bracket at the end": ("a: [\n", "1:4", "a bracket or brace is opened here and not closed"),
    "open brace": ("a: {b: 1\n", "1:4", "a bracket or brace is opened here and not closed"),
    "missing comma": ("a: [1, 'b' 2]\n", "1:4", "a bracket or brace is opened here and not closed"),
    "open quote": ("b: 1\na: 'x\n", "2:4", "the end of this is missing"),
    "colon in text": ("a: b: c\n", "1:5", "a colon where none can be"),
    "bad indentation": ("a:\n  b: 1\n c: 2\n", "3:2", "a field was expected here"),
    "reserved sign": ("a: @b\n", "1:4", "no value begins with this sign"),
    "unknown escape": ('a: "\\d"\n', "1:5", "an unknown escape"),
    "unknown alias": ("a: *b\n", "1:4", "the alias *b has no anchor before it"),
    "alias of itself": ("a: &a [*a]\n", "1:8", "the alias *a contains itself"),
    "python object": ("a: !!python/object/apply:os.system ['id']\n", "1:4", "the tag !!python/object/apply:os.system"),
    "own tag": ("a: !ref b\n", "1:4", "the tag !ref means nothing here"),
    "undeclared tag handle": ("a: !x!y b\n", "1:4", "a tag that means nothing here"),
    "wrong tag": ("a: !!int x\n", "1:4", "not what its tag !!int says"),
    "list as a key": ("? [a]\n: b\n", "1:3", "a field's name must be text"),
    "empty key": ('"": 1\n', "1:1", "a field has no name"),
    "merge of a number": ("<<: 3\n", "1:1", "<< takes in the fields of a mapping"),
    "control character": ("a: 1\nb: x\x07\n", "2:5", "the control character U+0007"),
    "a list": ("- 1\n- 2\n", "1:1", "a document is a mapping of fields, and this is a list"),
    "text": ("hello\n", "1:1", "a document is a mapping of fields, and this is plain text"),
    "too deep": ("a: " + "[" * 40 + "]" * 40, "1:35", "nested deeper than 32 levels"),
    "brackets without end": ("[" * 30_000, "1:33", "nested deeper than 32 levels"),
    "too large": ("a: " + "x" * 300 * 1024, "1:1", "this document has 300 KiB, and 48 KiB is the most"),
    "alias bomb": (
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{n}: &{n} [{','.join(['*' + m] * 9)}]\n" for m, n in zip("abcdefgh", "bcdefghi", strict=True)),
        "5:14",
        "its aliases unfold to more than 48 KiB",
    ),
    "alias bomb of long text": (f"a: &a {'x' * 20_000}\nb: [*a, *a, *a]\n", "2:9", "its aliases unfold"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_said_with_line_and_column(name: str) -> None:
    text, where, message = BAD[name]
    error = _error(text)
    assert str(error.place) == f"f.yaml:{where}"
    assert message in error.message


@pytest.mark.parametrize("name", BAD)
def test_the_documents_around_a_bad_one_are_read(name: str) -> None:
    found = list(parse(f"a: 1\n---\n{BAD[name][0]}\n---\nb: 2\n", "f.yaml"))
    assert [entry.content if isinstance(entry, Document) else "error" for entry in found] == [
        {"a": 1},
        "error",
        {"b": 2},
    ]
    error = found[1]
    line, column = BAD[name][1].split(":")
    assert isinstance(error, ManifestError)
    assert str(error.place) == f"f.yaml:{int(line) + 2}:{column}"


@given(st.binary(max_size=200))
def test_no_bytes_do_harm(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "any.yaml"
    path.write_bytes(data)
    for entry in read_documents([str(path)]):
        assert isinstance(entry, ManifestError) or isinstance(entry.content, dict)


@given(st.text(st.sampled_from("ab:-[]{}&*!|>'\"%@` \n\t#,?<~0.\\"), max_size=60))
def test_no_text_does_harm_and_what_we_read_yaml_reads(text: str) -> None:
    for entry in parse(text, "f.yaml"):
        if isinstance(entry, ManifestError):
            assert entry.place.line <= text.count("\n") + 2
        else:
            assert json.loads(json.dumps(entry.content)) == entry.content


def test_documents_are_cut_at_their_markers_and_empty_ones_are_left_out() -> None:
    text = "%YAML 1.2\n---\na: 1\n...\n# nothing\n---\n---\n\n--- # b\nb: 2\n...\nc: '---'\n---\nd: |\n  ---\n  ...\n"
    assert [entry.content for entry in parse(text, "f") if isinstance(entry, Document)] == [
        {"a": 1},
        {"b": 2},
        {"c": "---"},
        {"d": "---\n...\n"},
    ]


def test_aliases_and_merges_mean_what_they_always_did() -> None:
    text = "x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\nz: {<<: [*x, {c: 4}]}\nw: *x\n"
    content = _one(text)
    assert content["y"] == {"a": 1, "b": 3}
    assert content["z"] == {"a": 1, "b": 2, "c": 4}
    assert content["w"] == content["x"]


def test_json_is_read_too_also_a_list_of_documents() -> None:
    text = '[{"kind": "Workload",\n\t"metadata": {"name": "a\\/b"}},\n {"kind": "Node"}]'
    first, second = parse(text, "f.json")
    assert isinstance(first, Document)
    assert isinstance(second, Document)
    assert first.content == {"kind": "Workload", "metadata": {"name": "a/b"}}
    assert str(first.place("metadata.name")) == "f.json:2:23"
    assert str(second.place("kind")) == "f.json:3:11"


# --- positions ------------------------------------------------------------------------------------

_KEY = st.text(string.ascii_letters, min_size=1, max_size=5)
_SCALAR = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8)
_TREE = st.recursive(
    _SCALAR,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3), st.dictionaries(_KEY, inner, min_size=1, max_size=3)
    ),
    max_leaves=12,
)


def _scalars(value: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in _scalars(inner, f"{path}.{key}" if path else key)]
    if isinstance(value, list):
        return [pair for index, inner in enumerate(value) for pair in _scalars(inner, f"{path}[{index}]")]
    return [(path, value)]


@given(st.dictionaries(_KEY, _TREE, min_size=1, max_size=4), st.booleans(), st.integers(0, 3))
def test_the_place_of_every_scalar_points_at_it(tree: dict[str, Any], flow: bool, before: int) -> None:
    text = "# a comment\n" * before + yaml.safe_dump(tree, default_flow_style=flow, width=40, indent=3)
    whole = f"first: document\n---\n{text}"
    _, document = parse(whole, "f.yaml")
    assert isinstance(document, Document)
    lines = whole.split("\n")
    for path, value in _scalars(tree):
        place = document.place(path)
        rest = lines[place.line - 1][place.column - 1 :].lstrip("'\"")
        assert rest.startswith(value), (path, place)


def test_a_field_that_is_not_there_is_placed_at_its_nearest_parent() -> None:
    text = "kind: Workload\nspec:\n  config:\n    memory: 4\n"
    (document,) = parse(text, "f.yaml")
    assert isinstance(document, Document)
    assert str(document.place("spec.config.cmd[0].x")) == "f.yaml:3:3"
    assert str(document.place("metadata.name")) == "f.yaml:1:1"
    assert str(document.place("")) == "f.yaml:1:1"


# --- files ----------------------------------------------------------------------------------------


def _read(*names: str, recursive: bool = False) -> list[object]:
    entries = read_documents([str(name) for name in names], recursive=recursive)
    return [e.content if isinstance(e, Document) else f"{e.place}: {e.message}" for e in entries]


def test_a_directory_gives_its_files_in_order_and_deeper_ones_on_demand(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.yml", "a.yaml", "c.json", "notes.txt", "sub/d.yaml"):
        (tmp_path / name).write_text(f'{{"f": "{name}"}}')
    assert _read(str(tmp_path)) == [{"f": "a.yaml"}, {"f": "b.yml"}, {"f": "c.json"}]
    assert {"f": "sub/d.yaml"} in _read(str(tmp_path), recursive=True)


def test_what_cannot_be_read_does_not_stop_the_others(tmp_path: Path) -> None:
    good = tmp_path / "good.yaml"
    good.write_text("a: 1\n")
    binary = tmp_path / "image.png"
    binary.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("a: 1\nb: käse\n".encode("latin-1"))
    wide = tmp_path / "wide.yaml"
    wide.write_bytes("a: 1\n".encode("utf-16"))
    empty = tmp_path / "empty"
    empty.mkdir()
    found = _read(str(tmp_path / "none.yaml"), str(binary), str(latin), str(wide), str(empty), str(good))
    assert found == [
        f"{tmp_path}/none.yaml: there is no such file",
        f"{binary}: this is a binary file, not YAML",
        f"{latin}:2:5: the byte 0xe4 is not UTF-8 text",
        f"{wide}:1:1: this is UTF-16 text, not UTF-8",
        f"{empty}: no .yaml, .yml, .json files in this directory",
        {"a": 1},
    ]


def test_standard_input_is_a_file_called_minus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"\xef\xbb\xbfa: 1\n---\n b: @\n")))
    assert _read("-") == [{"a": 1}, "stdin:3:5: not valid YAML: no value begins with this sign"]


def test_ten_thousand_documents_are_read_at_once() -> None:
    text = "".join(f"---\nkind: Workload\nmetadata: {{name: w{n}}}\nspec: {{image: a}}\n" for n in range(10_000))
    found = list(parse(text, "f.yaml"))
    assert len(found) == 10_000
    last = found[-1]
    assert isinstance(last, Document)
    assert str(last.place("metadata.name")) == "f.yaml:39999:18"
