"""The command line as a door: what it lists, and what it says to a wrong word."""

from __future__ import annotations

import os
import re

import pytest

from deploy import cli
from deploy.commands.status import plain_console
from deploy.config.options import GROUPS, OPTIONS

LINE = re.compile(r"baton: error: (?P<said>.+)\n")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BATON_API_KEY", raising=False)
    monkeypatch.setenv("COLUMNS", "100")


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Of something that ends well."""
    with pytest.raises(SystemExit) as end:
        cli.main([*words])
    assert end.value.code == 0
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that is said, with exit status 2."""
    assert cli.main([*words]) == 2
    found = LINE.fullmatch(capsys.readouterr().err)
    assert found is not None
    return found["said"]


def test_every_command_has_one_line(capsys) -> None:
    _, verbs = cli.make_parser()
    lines = shown(capsys, "--help").splitlines()
    for verb in verbs:
        [line] = [line for line in lines if line.startswith(f"    {verb} ")]
        assert len(line.split(maxsplit=1)[1]) > 10
        assert len(line) <= 80


@pytest.mark.parametrize("verb", cli.make_parser()[1])
def test_every_command_has_help(verb: str, capsys) -> None:
    assert f"baton {verb}" in shown(capsys, verb, "--help")


def test_options_are_shown_in_groups(capsys) -> None:
    text = shown(capsys, "serve", "--help")
    places = [text.index(f"\n{title}:\n") for title in GROUPS]
    assert places == sorted(places)
    for place, options in zip(places, GROUPS.values(), strict=True):
        assert text.index(f"  --{options[0].name}") > place


def test_every_option_is_in_one_group() -> None:
    names = [option.name for options in GROUPS.values() for option in options]
    assert names == [option.name for option in OPTIONS]
    assert len(names) == len(set(names))


def test_choices_are_shown_where_there_are_any(capsys) -> None:
    text = shown(capsys, "serve", "--help")
    assert "--transport {auto,shm,zmq,ucx,nixl}" in text
    assert "--dtype {auto,float32,bfloat16}" in text
    for option in OPTIONS:
        for name in option.choices:
            assert option.parse(name.upper()) == name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["autoscale", "--goall", "1"], "unknown option --goall; did you mean 'goal:SHARE'?"),
        (["autoscale", "--prefill", "1"], "did you mean 'prefill=1..4'?"),
        (["plan", "--slos", "x"], "unknown option --slos; did you mean '--slo'?"),
        (["rollout", "stat"], "did you mean 'status'?"),
        (["sreve"], "unknown command 'sreve'; did you mean 'serve'?"),
        (["frobnicate"], "unknown command 'frobnicate'; `baton --help` lists all"),
        (["--verbose", "serve"], "unknown option --verbose"),
        (["bench", "serv"], "'serv' is nothing to measure; did you mean 'serve'?"),
        (["bench", "xyzzy"], "there are serve, kv, store, engine, coordinator, cluster"),
        (["bench"], "name what to measure"),
        (
            ["serve", "--blok-size", "16"],
            "unknown option --blok-size; did you mean '--block-size'?",
        ),
        (["serve", "--transport", "nxil"], "did you mean 'nixl'?"),
        (["serve", "a", "b", "--model", "c"], "--model: several MODELs are named already"),
        (["serve", "--config", "/nowhere.yaml"], "--config: there is no file /nowhere.yaml"),
        (["status", "--jsn"], "unknown option --jsn; did you mean '--json'?"),
        (["status", "--json", "--watch"], "--watch: not allowed with argument --json"),
        (["status", "--url", "foo"], "--url: 'foo' is no URL; write http://127.0.0.1:8000"),
        (["scale", "decode=2", "--url", "ftp://x"], "--url: 'ftp://x' is no URL"),
        (["scale"], "required: prefill=N|decode=N"),
        (["scale", "x=3"], "scale: 'x=3' is not understood: write prefill=3 decode=1"),
        (["drain", "decode-0", "--timeout", "soon"], "--timeout: 'soon' is not a number"),
        (["drain", "decode-0", "--api-key", "schlüssel"], "--api-key: a key has printable ASCII"),
        (["role", "decode-0", "prefil"], "one of prefill, decode; did you mean 'prefill'?"),
        (["keys", "crate"], "one of create, list, show, rotate, revoke; did you mean 'create'?"),
        (
            ["keys", "create", "--tennant", "x"],
            "unknown option --tennant; did you mean '--tenant'?",
        ),
        (
            ["plan", "--slo", "ttft:900,tpot:90", "--rat", "1"],
            "unknown option --rat; did you mean '--rate'?",
        ),
        (["bench", "coordinator", "--steams", "2"], "did you mean '--streams'?"),
        (["bench", "engine", "--bakend", "cpu"], "did you mean '--backend'?"),
        (["bench", "kv", "--transport", "sm"], "did you mean 'shm'?"),
        (["bench", "kv", "--repeat", "2"], "did you mean '--repeats'?"),
        (["bench", "cluster", "--slo", "ttft:900", "--polices", "x"], "did you mean '--policies'?"),
        (["bench", "serve", "--ulr", "x"], "did you mean '--url'?"),
        (["drain"], "drain: name a worker, or --all for the whole server"),
        (["role", "decode-0", "both"], "role: 'both' is not one of prefill, decode; see"),
        (["chat", "--temperature", "nan"], "--temperature: 'nan' is not a number"),
        (["chat", "--temperature", "3"], "--temperature: must be 0 to 2"),
        (["chat", "--max-tokens", "0"], "--max-tokens: 0 is outside 1…"),
        (["doctor", "--port", "999999"], "--port: 999999 is outside 1…65535"),
        (["pull", "--dtype", "half"], "--dtype: 'half' is not supported on CPUs"),
        (["version", "now"], "unexpected argument 'now'"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_a_wrong_word_gets_one_sentence(words: list[str], said: str, capsys) -> None:
    assert said in refusal(capsys, *words)


def test_a_key_in_the_environment_that_no_header_can_carry_is_named(capsys, monkeypatch) -> None:
    monkeypatch.setenv("BATON_API_KEY", "schlüssel")
    assert refusal(capsys, "status").startswith("BATON_API_KEY: a key has printable ASCII")


def test_a_config_that_cannot_be_read_is_named(capsys, monkeypatch, tmp_path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert f"{path} is not YAML" in refusal(capsys, "serve", "--config", str(path))


@pytest.mark.parametrize("words", [["version"], ["serve", "--print-config"]])
def test_nobody_who_reads_is_a_status_and_no_traceback(words, monkeypatch, capfd) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as output:
        monkeypatch.setattr("sys.stdout", output)
        assert cli.main(words) == 141
    assert capfd.readouterr().err == ""


def test_a_table_that_nobody_reads_is_the_same(monkeypatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)

    def show(_: list[str]) -> int:
        plain_console().print("x")
        return 0

    monkeypatch.setattr(cli, "run", show)
    with os.fdopen(writing, "w") as output:
        monkeypatch.setattr("sys.stdout", output)
        assert cli.main([]) == 141


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1:x", "http://127.0.0.1:99999", "http://127.0.0.1:0", "http://a..b/"),
        *("http://" + "a" * 64, "http://[::1", "http://a b/", "http://\x00a/", "http://a\u2028"),
        *("http://", "ftp://a", "127.0.0.1:8000"),
    ],
)
@pytest.mark.parametrize("words", [["status"], ["ps"], ["keys", "list"], ["autoscale"]])
def test_what_is_no_url_is_refused_by_its_flag(url, words, capsys) -> None:
    said = refusal(capsys, *words, "--url", url)
    assert said.startswith(f"--url: {url!r} is no URL")
