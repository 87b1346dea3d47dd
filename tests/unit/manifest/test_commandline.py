"""A command written as one text means what a person means by it."""

import pytest

from pwm.controlplane.core.commandline import CommandLineError, split


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bash", ["bash"]),
        ("  python   main.py ", ["python", "main.py"]),
        ("python main.py --name 'run 1' --note \"a b\"", ["python", "main.py", "--name", "run 1", "--note", "a b"]),
        ("sh -c 'cd /x && ls'", ["sh", "-c", "cd /x && ls"]),
        ("echo '$HOME'", ["echo", "$HOME"]),
        ("echo a\\ b", ["echo", "a b"]),
        ("train --lr=0.1 --sizes=[1,2]", ["train", "--lr=0.1", "--sizes=[1,2]"]),
        ("echo a#b a~b", ["echo", "a#b", "a~b"]),
        ("echo 'it'\"'\"'s'", ["echo", "it's"]),
    ],
)
def test_plain_words_are_split_as_a_shell_splits_them(text: str, words: list[str]) -> None:
    assert split(text) == words


@pytest.mark.parametrize(
    "text",
    [
        "cd /code && python main.py",
        "cat a | wc",
        "python main.py > out.txt",
        "echo $HOME",
        'echo "$HOME"',
        "echo `date`",
        "ls *.py",
        "a; b",
        "a &",
        "first\nsecond",
        "ls ~/data",
        "SEED=1 python main.py",
        "(a)",
    ],
)
def test_what_needs_a_shell_gets_one(text: str) -> None:
    assert split(text) == ["/bin/sh", "-c", text]


def test_a_shell_as_entry_point_gets_the_text_as_its_one_argument() -> None:
    assert split("cd /x && ls 'unfinished", entrypoint=["/bin/bash", "-c"]) == ["cd /x && ls 'unfinished"]


@pytest.mark.parametrize("text", ["echo 'unfinished", 'echo "unfinished', "echo end\\"])
def test_a_quote_without_its_end_is_no_command_line(text: str) -> None:
    with pytest.raises(CommandLineError, match="without its end"):
        split(text)


def test_an_empty_text_is_no_command_line() -> None:
    with pytest.raises(CommandLineError, match="empty"):
        split("   ")
