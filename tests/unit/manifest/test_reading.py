"""Documents are read one by one, values are what the user wrote, and every error says where."""

import json
import string
import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pwm.manifest import reading
from pwm.manifest.cutting import Chunk, ManifestError, cut, most_documents
from pwm.manifest.documents import Document, Positions, parse, read_all
from pwm.manifest.reading import PATH_LIMIT_CHARS, plain_value


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
    "a second document that only YAML sees": ("a: 1\r---\rb: 2\n", "2:1", "another document begins here"),
    "a second document behind an end": ("a: 1\u2028---\nb: 2\n", "2:1", "another document begins here"),
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


def test_lines_may_end_as_windows_ends_them() -> None:
    text = "a: 1\r\n...\r\nb: 2\r\n---\r\n# nothing\r\n--- # c\r\nc: 3\r\n"
    assert [entry.content for entry in parse(text, "f") if isinstance(entry, Document)] == [
        {"a": 1},
        {"b": 2},
        {"c": 3},
    ]


@pytest.mark.parametrize("text", ["---x: 1\n", "...x: 1\n", "....: 1\n", "----: 1\n", "a: |\n  ---\n", "---#x: 1\n"])
def test_what_only_looks_like_a_marker_is_text(text: str) -> None:
    assert len(_one(text)) == 1


_LINES = [
    "---",
    "--- # c",
    "---#x",
    "...",
    "... # c",
    "...x",
    "# c",
    "",
    "%YAML 1.2",
    "a: 1",
    "a: 1",
    "b: [",
    "c: '",
    "  d",
]


@given(st.lists(st.sampled_from(_LINES), max_size=12).map("\n".join))
def test_a_text_cut_at_its_documents_reads_as_the_whole(text: str) -> None:
    """Which is why a client may send a long text in parts."""

    def told(entries: Iterable[Document | ManifestError]) -> list[tuple[object, str]]:
        return [
            (e.message, str(e.place)) if isinstance(e, ManifestError) else (e.content, str(e.start)) for e in entries
        ]

    parts: list[tuple[object, str]] = []
    for chunk in cut(text, "f"):
        assert isinstance(chunk, Chunk)
        parts += told(read_all(cut(chunk.text, "f", first_line=chunk.first_line)))
    assert parts == told(parse(text, "f"))
    assert len(parts) <= most_documents(text)


def test_a_document_begins_where_its_first_field_stands() -> None:
    (inline,) = parse("# c\n---  {a: 1}\n", "f")
    assert isinstance(inline, Document)
    assert str(inline.start) == "f:2:6"
    items = list(parse("- a: 1\n-\n  b: [x]\n- &c {c: {d: 1}}\n- *c\n", "f"))
    assert [str(item.start) for item in items if isinstance(item, Document)] == ["f:1:3", "f:3:3", "f:4:3", "f:5:3"]


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


def test_positions_of_long_paths_take_no_memory() -> None:
    """Of 48 KiB: thirty levels of long keys above a long list would be 200 MB of paths."""
    keys = "".join(" " * level + "k" * 1000 + ":\n" for level in range(30))
    (chunk,) = cut(f"a: 1\n{keys}{' ' * 30}[{','.join('x' * 7000)}]\n", "f")
    assert isinstance(chunk, Chunk)
    tracemalloc.start()
    try:
        positions = Positions(chunk)
        used = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert used < 10 * 2**20
    assert str(positions.find("a")) == "f:1:4"
    assert str(positions.find("k" * 400 + "…")) == "f:1:1"


def test_a_key_of_the_greatest_length_has_its_position() -> None:
    key = "k" * PATH_LIMIT_CHARS
    (document,) = parse(f"a: 1\n{key}: 2\n", "f")
    assert isinstance(document, Document)
    assert document.place(key).line == 2


def test_a_reader_without_libyaml_says_the_same_of_a_wrong_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'a: 1\nb: "\\U00110000"\n'
    assert "not valid YAML" in _error(text).message
    monkeypatch.setattr(reading, "_LOADER", yaml.SafeLoader)
    assert "not valid YAML" in _error(text).message


def test_ten_thousand_documents_are_read_at_once() -> None:
    text = "".join(f"---\nkind: Workload\nmetadata: {{name: w{n}}}\nspec: {{image: a}}\n" for n in range(10_000))
    found = list(parse(text, "f.yaml"))
    assert len(found) == 10_000
    last = found[-1]
    assert isinstance(last, Document)
    assert str(last.place("metadata.name")) == "f.yaml:39999:18"
