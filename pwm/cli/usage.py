"""The full reader of command lines: click, made from the same tables as the quick one.

It is imported only when there is something to say: help, a mistake on the command line, or the
shell asking what could come next. It never defines an option of its own; `click_command` turns a
`Command` into click's, and `Program` loads a command's module only when that command is named.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from pwm.cli import exit_codes
from pwm.cli.command import GLOBAL_OPTIONS, Argument, Command, Option
from pwm.cli.invocation import Invocation

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Program(click.Group):
    """The group of all commands, each imported when it is used."""

    def __init__(self, summaries: dict[str, str], load: Callable[[str], Command | None]) -> None:
        super().__init__(
            name="pwm",
            help="Share GPU and CPU machines: declare workloads, PWM finds them a place and keeps them running.",
            epilog="`pwm COMMAND --help` says more about a command.",
            params=[_option(option) for option in GLOBAL_OPTIONS],
            context_settings=SETTINGS,
            no_args_is_help=True,
            callback=lambda **values: None,
        )
        self._summaries = summaries
        self._load = load

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = self._load(cmd_name)
        return click_command(command) if command else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self._load(args[0]) is None:
            raise _unknown_command(args[0], self._summaries, ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the summaries alone: nothing is imported for it."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._summaries.items()))


class Subcommands(click.Group):
    """`pwm profile`, `pwm admin`: says the nearest command when one is mistyped."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise _unknown_command(args[0], self.commands, ctx)
        return super().resolve_command(ctx, args)


def _unknown_command(word: str, known: Any, ctx: click.Context) -> click.UsageError:
    near = difflib.get_close_matches(word, known, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"See {ctx.command_path} --help for all commands."
    return click.UsageError(f"there is no command {word!r}. {hint}", ctx)


def click_command(command: Command) -> click.Command:
    """click's form of a command."""
    parameters: list[click.Parameter] = [_argument(argument) for argument in command.arguments]
    parameters += [_option(option) for option in command.options]
    if command.subcommands:
        return Subcommands(
            command.name,
            commands={name: click_command(sub) for name, sub in command.subcommands.items()},
            help=command.help,
            params=parameters,
            context_settings=SETTINGS,
            no_args_is_help=True,
        )

    def callback(**values: object) -> int:
        context = click.get_current_context()
        scope: dict[str, object] = {}
        parent = context.parent
        while parent is not None:
            scope.update({name: value for name, value in parent.params.items() if value})
            parent = parent.parent
        assert command.run is not None
        return Invocation.run(command, {**scope, **{k: v for k, v in values.items() if v or k not in scope}})

    return click.Command(
        command.name,
        callback=callback,
        params=parameters,
        help=command.help,
        epilog=command.epilog or None,
        hidden=command.hidden,
        context_settings={**SETTINGS, "allow_interspersed_args": command.interspersed},
    )


class _Converted(click.ParamType[Any]):
    """A parameter type whose rule is the table's own function."""

    def __init__(self, convert: Callable[[str], object], name: str) -> None:
        self.name = name
        self._convert = convert

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._convert(value)
        except ValueError as wrong:
            self.fail(str(wrong), param, ctx)


def _option(option: Option) -> click.Option:
    return click.Option(
        [*option.spellings, option.name],
        help=option.help,
        is_flag=option.flag,
        multiple=option.multiple,
        default=option.default,
        type=None if option.flag else _type(option),
        metavar=option.metavar or None,
        hidden=option.hidden,
        shell_complete=_completion(option.completes),
    )


def _argument(argument: Argument) -> click.Argument:
    kind = _Converted(argument.convert, "text") if argument.convert else click.UNPROCESSED
    return click.Argument(
        [argument.name],
        required=argument.required,
        nargs=-1 if argument.multiple else 1,
        type=kind,
        metavar=argument.metavar or None,
        shell_complete=_completion(argument.completes),
    )


def _type(option: Option) -> click.ParamType[Any]:
    if option.choices:
        return click.Choice(list(option.choices))
    return _Converted(option.convert, "value") if option.convert else click.UNPROCESSED


Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _completion(completes: str) -> Completer | None:
    if not completes:
        return None

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from pwm.cli.commands.completion import candidates

        if completes == "file":
            return [CompletionItem(incomplete, type="file")]
        known: dict[str, Any] = {}
        context: click.Context | None = ctx
        while context is not None:
            known = {**context.params, **known}
            context = context.parent
        return [CompletionItem(word) for word in candidates(completes, known) if word.startswith(incomplete)]

    return complete


def run(program: Program, words: Sequence[str]) -> int:
    """Reads the line in full and runs the command; says what is wrong with it when it is."""
    try:
        result = program.main(args=list(words), prog_name="pwm", standalone_mode=False)
    except click.UsageError as wrong:
        wrong.show()
        return exit_codes.USAGE
    except click.exceptions.Abort:
        return exit_codes.INTERRUPTED
    except SystemExit as done:
        # How click ends what it does for a shell's completion.
        return int(done.code or 0)
    return int(result or 0)
