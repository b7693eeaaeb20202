"""The command `baton`. Owns verbs, argument parsing and exit statuses; imports a verb's code only when it runs.

0 done    1 failed while running    2 a flag, variable or file is wrong    130 interrupted    141 nobody reads what is printed
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.commands.output import UNREAD, give_up
from deploy.config.models import SPELLED
from deploy.config.options import EMBEDDED_MODEL, GROUPS, OPTIONS
from deploy.config.parser import Parser, add_option, plain, typed
from deploy.config.refusals import REFUSALS
from deploy.config.server_access import add_admin_url, add_url, admin_key, key
from deploy.config.spelling import did_you_mean
from deploy.config.values import dtype, number, seconds, whole
from deploy.processes.garbage import hold_collection
from protocol.clock import SystemClock
from protocol.errors import BatonError, ConfigError
from protocol.roles import COMPUTING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import httpx

    from deploy.config.serve_config import Resolved

BENCHES = {
    "serve": ("benchmarks.serve.main", "load on any OpenAI endpoint, and what it felt"),
    "kv": ("benchmarks.kv.transfer", "how fast KV blocks move between processes"),
    "store": ("benchmarks.store.bench", "a store's disk: its speed, and what it keeps of a trace"),
    "engine": ("benchmarks.engine.bench", "how fast the engine's steps are, without HTTP"),
    "coordinator": ("benchmarks.coordinator.bench", "what the coordinator adds to every token"),
    "cluster": ("benchmarks.cluster_sim.main", "policies of scaling on a simulated cluster"),
}
"""Module and purpose of each benchmark; they live in the repository, beside the packages."""
OWN_PARSERS = {
    "plan": "find the pool sizes that hold an SLO, by simulation",
    "keys": "create, list, show, rotate and revoke keys",
    "store": "show, prove or delete the KV blocks that a store keeps on disk",
    "autoscale": "show or change the SLO, ranges and mode of a running autoscaler",
    "init": "write the files to run Baton on a host or a cluster",
    "apply": "make a running server what its configuration file says",
    "load": "bring a model into the memory of a running server",
    "unload": "take a model out of it as soon as nobody uses it",
    "ps": "show which models are in it, and when they go",
    "rollout": "roll out a new revision of a model while it serves",
}
RESIDENTS = ("load", "unload", "ps")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status."""
    arguments = [plain(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    try:
        status = run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if give_up(sys.stdout):
            return UNREAD
        raise
    except ConfigError as error:
        print(f"baton: error: {error}", file=sys.stderr)
        return 2
    except BatonError as error:
        print(f"baton: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def run(arguments: list[str]) -> int:
    """Parse and do; ConfigError for what cannot be parsed."""
    if arguments[:1] == ["bench"] and arguments[1:2] and arguments[1] in BENCHES:
        return run_bench(arguments[1], arguments[2:])  # each has its own parser
    if arguments[:1] and arguments[0] in OWN_PARSERS:
        return run_own(arguments[0], arguments[1:])
    parser, verbs = make_parser()
    if not arguments:
        parser.print_help()
        return 0
    name = arguments[0]
    if name in verbs:
        namespace = verbs[name].parse_args(arguments[1:])
        return int(namespace.run(namespace))
    if not name.startswith("-"):
        near = did_you_mean(name, verbs)
        raise ConfigError(f"unknown command {name!r}{near}; `baton --help` lists all")
    parser.parse_args(arguments)  # --help and --version end here
    raise ConfigError(f"{name}: name a command first; `baton --help` lists all")


def make_parser() -> tuple[Parser, dict[str, Parser]]:
    """Of `baton` itself, and of every verb."""
    parser = Parser(
        prog="baton",
        usage="baton [-h] [--version] COMMAND ...",
        description="Prefill-decode disaggregated serving of language models.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"baton {own_version()}")
    verbs = parser.add_subparsers(
        title="commands", prog="baton", dest="verb", metavar="COMMAND ...", parser_class=Parser
    )
    _add_serve(verbs)
    _add_chat(verbs)
    status = _add(verbs, "status", "show workers and requests of a running server", run_status)
    add_admin_url(status)
    shown = status.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print the server's answer as it is")
    shown.add_argument("--watch", action="store_true", help="keep showing it; Ctrl-C ends it")
    _add_scaling(verbs)
    doctor = _add(verbs, "doctor", "check what this machine offers", run_doctor)
    port = typed(whole(1, 65535))
    doctor.add_argument(
        "--port", type=port, default=8000, metavar="N", help="that should be free (default: 8000)"
    )
    pull = _add(verbs, "pull", "fetch and convert a model without serving it", run_pull)
    pull.add_argument("model", metavar="MODEL", nargs="?", default=EMBEDDED_MODEL)
    pull.add_argument("--dtype", default="auto", metavar=f"{{{','.join(dtype.names)}}}")
    for name, purpose in OWN_PARSERS.items():
        _add(verbs, name, purpose, run_own)
    _add(verbs, "version", "print the version", run_version)
    _add_bench(verbs)
    return parser, dict(verbs.choices)


def _add(verbs: Any, name: str, help_text: str, action: Any) -> Parser:
    parser: Parser = verbs.add_parser(
        name, help=help_text, description=help_text, allow_abbrev=False
    )
    parser.set_defaults(run=action)
    return parser


def _add_chat(verbs: Any) -> None:
    chat = _add(verbs, "chat", "talk to a running server, or ask it one question", run_chat)
    chat.add_argument("question", nargs="?", help="ask this and exit (default: a conversation)")
    add_url(chat)
    chat.add_argument("--model", help="name of the model (default: the first served)")
    chat.add_argument("--system", metavar="TEXT", help="system message")
    chat.add_argument("--temperature", type=typed(number(0, 2)), metavar="0…2")
    chat.add_argument("--max-tokens", type=typed(whole(1)), metavar="N")


def _add_bench(verbs: Any) -> None:
    bench = _add(verbs, "bench", f"measure: {', '.join(BENCHES)}", run_bench_usage)
    bench.formatter_class = argparse.RawDescriptionHelpFormatter
    lines = (f"  {name:<14}{purpose}" for name, (_, purpose) in BENCHES.items())
    bench.epilog = "\n".join(["what to measure:", *lines])
    bench.add_argument("what", nargs="?", metavar="WHAT", help="and its own options")


def _add_scaling(verbs: Any) -> None:
    scale = _add(verbs, "scale", "change the number of workers of a running server", run_scale)
    scale.add_argument(
        "wanted", nargs="+", metavar="prefill=N|decode=N", help="workers that pool should have"
    )
    scale.add_argument("--model", metavar="NAME", help="whose pools, where several are served")
    drain = _add(verbs, "drain", "let a worker, or all, finish what is there", run_drain)
    drain.add_argument("worker", metavar="WORKER", nargs="?", help="it leaves when it is done")
    drain.add_argument(
        "--all", action="store_true", help="the server takes nothing new; before it is ended"
    )
    drain.add_argument(
        "--within",
        type=typed(seconds),
        metavar="SECONDS",
        help="it is gone by then: what it writes is handed over at once, what is left is computed elsewhere",
    )
    for parser in (scale, drain):
        parser.add_argument(
            "--wait",
            action=argparse.BooleanOptionalAction,
            default=True,
            help="return when it is done (default), or at once",
        )
        parser.add_argument(
            "--timeout", type=typed(seconds), default=180.0, metavar="SECONDS", help="default: 180"
        )
        add_admin_url(parser)
    role = _add(verbs, "role", "move a worker to the other pool, with its KV cache", run_role)
    role.add_argument("worker", metavar="WORKER")
    role.add_argument("role", choices=tuple(role.value for role in COMPUTING))
    add_admin_url(role)


def _add_serve(verbs: Any) -> None:
    parser = _add(verbs, "serve", "serve a model from two pools of workers", run_serve)
    parser.usage = "baton serve [MODEL …] [--config FILE] [--OPTION VALUE …]"
    parser.epilog = "Every option is also a variable: --block-size is BATON_BLOCK_SIZE."
    parser.add_argument(
        "positional_models",
        metavar="MODEL",
        nargs="*",
        help="smollm2-135m, a Hugging Face directory, a .gguf file or a hub id; several are served side by side",
    )
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="YAML file; its keys are long options"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print every value and its source, and exit"
    )
    for title, options in GROUPS.items():
        group = parser.add_argument_group(title)
        for option in options:
            add_option(group, option)
    for refusal in REFUSALS:
        names = [f"--{refusal.name}", *([refusal.short] if refusal.short else [])]
        parser.add_argument(
            *names, dest=f"refused:{refusal.name}", nargs="?", const="", help=argparse.SUPPRESS
        )


def resolve_arguments(namespace: argparse.Namespace) -> Resolved:
    """The configuration that parsed arguments, environment and file give together."""
    from deploy.config.serve_config import resolve
    from deploy.config.topology import environment

    given = vars(namespace)
    for refusal in REFUSALS:
        value = given[f"refused:{refusal.name}"]
        if value is not None and value not in refusal.accepted:
            raise ConfigError(f"--{refusal.name}: {refusal.reason}")
    chosen = {
        o.name: given[f"option:{o.name}"] for o in OPTIONS if given[f"option:{o.name}"] is not None
    }
    positionals = given["positional_models"]
    if positionals[1:] and "model" in chosen:
        raise ConfigError("--model: several MODELs are named already; leave it out")
    for positional in positionals[:1]:
        if chosen.get("model", positional) != positional:
            raise ConfigError(
                f"--model: {chosen['model']!r} and MODEL {positional!r} differ; give one"
            )
        chosen["model"] = positional
    variables = environment()
    file = namespace.config or (
        Path(variables["BATON_CONFIG"]) if "BATON_CONFIG" in variables else None
    )
    are_several = positionals[1:] or any(SPELLED.fullmatch(it) for it in positionals)
    return resolve(chosen, variables, file, positionals if are_several else ())


def run_serve(namespace: argparse.Namespace) -> int:
    """`baton serve`."""
    clock = SystemClock()
    started_s = clock.now_s()
    resolved = resolve_arguments(namespace)
    if namespace.print_config:
        from deploy.config.described import describe

        print(describe(resolved))
        return 0
    hold_collection()
    from deploy.commands.serve import serve

    return serve(resolved.models, clock, started_s)


def run_chat(namespace: argparse.Namespace) -> int:
    """`baton chat`."""
    from deploy.commands.chat import Chat

    chat = Chat(
        namespace.url,
        key(namespace),
        model=namespace.model,
        system=namespace.system,
        options={"temperature": namespace.temperature, "max_tokens": namespace.max_tokens},
    )
    return chat.ask_once(namespace.question) if namespace.question else chat.converse()


def run_status(namespace: argparse.Namespace) -> int:
    """`baton status`."""
    from deploy.commands.status import show_status

    own = admin_key(namespace)
    if namespace.watch:
        from deploy.commands.watch import watch

        return watch(namespace.url, own)
    return show_status(namespace.url, own, as_json=namespace.json)


def run_scale(namespace: argparse.Namespace) -> int:
    """`baton scale`."""
    from deploy.commands.scale import parse_wanted, scale

    with _pool_client(namespace) as client:
        wanted = parse_wanted(namespace.wanted)
        return scale(client, wanted, _patience_s(namespace), namespace.model)


def run_drain(namespace: argparse.Namespace) -> int:
    """`baton drain`."""
    from deploy.commands.scale import drain, drain_all

    if namespace.all == (namespace.worker is not None):
        raise ConfigError("drain: name a worker, or --all for the whole server")
    with _pool_client(namespace) as client:
        if namespace.all:
            return drain_all(client, _patience_s(namespace))
        return drain(client, namespace.worker, _patience_s(namespace), namespace.within)


def run_role(namespace: argparse.Namespace) -> int:
    """`baton role`."""
    from deploy.commands.scale import set_role

    with _pool_client(namespace) as client:
        return set_role(client, namespace.worker, namespace.role)


def _pool_client(namespace: argparse.Namespace) -> httpx.Client:
    from deploy.commands.status import status_client

    return status_client(namespace.url, admin_key(namespace))


def _patience_s(namespace: argparse.Namespace) -> float | None:
    """How long to wait for the pools; None when not at all."""
    return namespace.timeout if namespace.wait else None


def run_doctor(namespace: argparse.Namespace) -> int:
    """`baton doctor`."""
    from deploy.commands.doctor import show_checks

    return show_checks(namespace.port)


def run_pull(namespace: argparse.Namespace) -> int:
    """`baton pull`."""
    from rich.console import Console

    from deploy.commands.banner import PrepareProgress, show_warnings
    from deploy.config.topology import cache_directory
    from deploy.host.model_source import prepare, resolve_dtype

    try:
        wanted = resolve_dtype(dtype(namespace.dtype))
    except ValueError as error:
        raise ConfigError(f"--dtype: {error}") from None
    console = Console(stderr=True, highlight=False)
    with PrepareProgress(console) as progress:
        model = prepare(namespace.model, (), wanted, cache_directory(), progress)
    show_warnings(console, model.warnings)
    print(model.directory)
    return 0


def run_version(_: argparse.Namespace) -> int:
    """`baton version`."""
    print(f"baton {own_version()}")
    return 0


def run_bench_usage(namespace: argparse.Namespace) -> int:
    """`baton bench` with anything that is none."""
    if namespace.what is None:
        raise ConfigError(f"bench: name what to measure: baton bench {'|'.join(BENCHES)}")
    near = did_you_mean(namespace.what, BENCHES) or f": there are {', '.join(BENCHES)}"
    raise ConfigError(f"bench: {namespace.what!r} is nothing to measure{near}")


def run_bench(name: str, arguments: list[str]) -> int:
    """`baton bench NAME …`."""
    module = BENCHES[name][0]
    from importlib import import_module

    return int(import_module(module).main(arguments) or 0)


def run_own(name: str, arguments: list[str]) -> int:
    """A verb that has its own parser."""
    from importlib import import_module

    module, own = ("residents", [name, *arguments]) if name in RESIDENTS else (name, arguments)
    return int(import_module(f"deploy.commands.{module}").main(own))


def own_version() -> str:
    """The installed distribution's version."""
    try:
        return version("baton-serve")
    except PackageNotFoundError:
        return "0.1.0+uninstalled"


if __name__ == "__main__":
    sys.exit(main())
