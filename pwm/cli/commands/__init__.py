"""The commands, one module for each family; nothing is imported here.

A module has a table `COMMANDS` of its commands by name, each a `Command` from `pwm.cli.command`:

    def restart(invocation: Invocation, *, names: tuple[str, ...]) -> int: ...

    COMMANDS = {"restart": Command("restart", restart, help="...", parameters=(Argument("names", ...), *SCOPE))}

The function gets the parameters by name (global ones, such as --group, are in the `Invocation`),
raises `CliError` when something is wrong, and returns an exit code. The command's name, module and
summary line are entered in `pwm.cli.main.COMMANDS`. Import what is heavy inside the function.
"""
