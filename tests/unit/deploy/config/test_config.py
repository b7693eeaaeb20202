"""Flags, variables, files: what they accept, who wins, and what is said when they are wrong."""

from __future__ import annotations

import pytest

from deploy import cli
from deploy.commands import serve
from deploy.config.described import describe
from deploy.config.options import ALIASES, BY_NAME, OPTIONS
from deploy.config.parser import plain
from deploy.config.refusals import REFUSALS
from deploy.config.serve_config import resolve
from deploy.config.topology import Pools, child_environment, parse_pd
from protocol.errors import ConfigError


def parsed(*arguments: str, monkeypatch=None):
    _, verbs = cli.make_parser()
    namespace = verbs["serve"].parse_args([plain(argument) for argument in arguments])
    return cli.resolve_arguments(namespace)


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch):
    for option in OPTIONS:
        monkeypatch.delenv(option.variable, raising=False)


@pytest.mark.parametrize(
    ("text", "pools"),
    [("1p1d", Pools(1, 1)), ("0p1d", Pools(0, 1)), ("2P4D", Pools(2, 4)), ("12p4d", Pools(12, 4))],
)
def test_pd_shapes(text, pools) -> None:
    assert parse_pd(text) == pools
    assert parse_pd(str(pools)) == pools


@pytest.mark.parametrize("text", ["", "1p", "p1d", "1p0d", "0p0d", "1p1d1", "-1p1d", "200p200d"])
def test_pd_nonsense_is_refused(text) -> None:
    with pytest.raises(ValueError, match=r"1p1d|workers"):
        parse_pd(text)


def test_worker_ids_put_prefill_first() -> None:
    assert Pools(1, 2).worker_ids() == [
        ("prefill-0", "prefill"),
        ("decode-0", "decode"),
        ("decode-1", "decode"),
    ]


def test_command_line_beats_environment_beats_file_beats_default(tmp_path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("port: 1\nblock-size: 32\nseed: 7\nmax_num_seqs: 9\n")
    environment = {"BATON_PORT": "2", "BATON_BLOCK_SIZE": "64"}
    resolved = resolve({"port": "3"}, environment, file)
    config = resolved.config
    assert (config.port, config.block_size, config.seed, config.max_num_seqs) == (3, 64, 7, 9)
    assert config.host == "127.0.0.1"
    assert resolved.sources["port"] == "command line"
    assert resolved.sources["block-size"] == "environment BATON_BLOCK_SIZE"
    assert resolved.sources["seed"] == str(file)
    assert resolved.sources["host"] == "default"


def test_printed_config_is_a_file_that_gives_the_same(tmp_path) -> None:
    first = resolve({"pd": "2p2d", "served-model-name": ["a", "b"], "root-path": "/x: y"}, {})
    file = tmp_path / "c.yaml"
    file.write_text(describe(first))
    assert resolve({}, {}, file).config == first.config


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "node-7"])
def test_listening_beyond_loopback_without_keys_is_refused(host) -> None:
    with pytest.raises(ConfigError, match=r"--host.*BATON_API_KEY.*--no-auth"):
        resolve({"host": host}, {})
    assert resolve({"host": host, "api-key": ["k"]}, {}).config.host == host
    assert resolve({"host": host}, {"BATON_API_KEY": "k"}).config.host == host
    assert resolve({"host": host, "auth": False}, {}).config.host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_needs_no_keys(host) -> None:
    assert resolve({"host": host}, {}).config.api_key == ()


def test_a_clients_key_of_the_command_line_is_no_operators_key_of_the_database() -> None:
    given = {"keys-db": "keys.db", "api-key": ["k"]}
    with pytest.raises(ConfigError, match=r"--keys-db: .*--admin-api-key"):
        resolve(given, {})
    assert resolve(given | {"admin-api-key": ["boss"]}, {}).config.api_key == ("k",)
    assert resolve({"keys-db": "keys.db"}, {}).config.keys_db == "keys.db"


def test_printed_config_hides_keys() -> None:
    text = describe(resolve({"api-key": ["secret-1", "secret-2"]}, {}))
    assert "secret" not in text
    assert "# api-key: 2 hidden" in text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("prot: 1", "did you mean 'port'"),
        ("max_model_length: 1", "did you mean 'max-model-len'"),
        ("port: [1]", "port"),
        ("port: x", "port"),
        ("enable-prefix-caching: 3", "enable-prefix-caching"),
        ("trust-remote-code: true", "never runs code"),
        ("- port", "name: value"),
        ("port: 'a", "not YAML"),
    ],
)
def test_file_errors_name_the_key(tmp_path, line, said) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(line)
    with pytest.raises(ConfigError, match=said):
        resolve({}, {}, file)


def test_a_file_means_what_is_written(tmp_path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "api-key: [0123456, 1_2, 2024-01-01T00:00:00Z]\nserved-model-name: 1.10\n"
        "block-size: 016\nport: 8_000\nkv-cache-memory: 1_073_741_824\nseed: 7\ntimeout-keep-alive: 10.50\n"
    )
    config = resolve({}, {}, file).config
    assert config.api_key == ("0123456", "1_2", "2024-01-01T00:00:00Z")
    assert config.served_model_name == ("1.10",)
    assert (config.block_size, config.port, config.seed) == (16, 8000, 7)
    assert (config.kv_cache_memory, config.timeout_keep_alive) == (1 << 30, 10.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("block_size: 32\nblock-size: 16", "block-size is there twice"),
        ("max_model_len: 9\nmax-model-len: 8", "max-model-len is there twice"),
        ("api-key: [on]", r"api-key\[0\]: True"),
        ("api-key: [a, ~]", r"api-key\[1\]: None"),
        ("keep-alive: 5:00", "keep-alive"),
        ("cpu-affinity: 0,3-1", "cpu-affinity: '3-1'"),
        ("cpu-affinity: 0-99999999999", "cpu-affinity: '0-99999999999'"),
        (f"kv-cache-memory: {'9' * 400}", "kv-cache-memory"),
    ],
)
def test_what_a_file_cannot_mean_is_named(tmp_path, text, said) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        resolve({}, {}, file)


def test_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"no file .*absent"):
        resolve({}, {}, tmp_path / "absent.yaml")


def test_environment_errors_name_the_variable() -> None:
    with pytest.raises(ConfigError, match="BATON_PORT"):
        resolve({}, {"BATON_PORT": "many"})


def test_underscores_aliases_and_units_of_peers() -> None:
    config = parsed(
        "--max_model_len=8k",
        "--page-size",
        "32",
        "--max-running-requests",
        "5",
        "--kv_cache_memory",
        "512MiB",
        "--no_enable_prefix_caching",
    ).config
    assert (config.max_model_len, config.block_size, config.max_num_seqs) == (8000, 32, 5)
    assert config.kv_cache_memory == 512 << 20
    assert config.enable_prefix_caching is False


def test_replicas_replace_parts_of_pd() -> None:
    assert parsed("--pd", "1p1d", "--decode-replicas", "3").config.pools == Pools(1, 3)


def test_several_names_and_keys(monkeypatch) -> None:
    config = parsed("--served-model-name", "a", "b", "--api-key", "x", "--api-key", "y").config
    assert config.served_model_name == ("a", "b")
    assert config.api_key == ("x", "y")
    monkeypatch.setenv("BATON_API_KEY", "p,q")
    assert parsed().config.api_key == ("p", "q")


@pytest.mark.parametrize("key", ["", "  ", "a,"])
def test_an_empty_key_is_refused_and_never_means_no_key(monkeypatch, key) -> None:
    monkeypatch.setenv("BATON_API_KEY", key)
    with pytest.raises(ConfigError, match="BATON_API_KEY: is empty"):
        parsed()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--port", "70000"),
        ("--port", "-1"),
        ("--block-size", "12"),
        ("--dtype", "half"),
        ("--dtype", "int4"),
        ("--kv-cache-memory", "lots"),
        ("--kv-lease-duration", "0"),
        ("--kv-lease-duration", "nan"),
        ("--backend", "cuda"),
        ("--cpu-affinity", "a-b"),
        ("--launcher", "slurm"),
        ("--ray-address", "ray://head:10001"),
        ("--ray-placement", "anywhere"),
        ("--ray-worker-cpus", "-1"),
        ("--transport", "pigeon"),
        ("--max-num-seqs", "0"),
        ("--pd", "1p0d"),
        ("--pd", "0p1d", "--transport", "shm"),
    ],
)
def test_wrong_values_name_their_flag(arguments, capsys) -> None:
    assert cli.main(["serve", *arguments, "--print-config"]) == 2
    assert arguments[-2] in capsys.readouterr().err


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
def test_foreign_flags_are_refused_with_a_reason(refusal, capsys) -> None:
    assert cli.main(["serve", f"--{refusal.name}=nonsense", "--print-config"]) == 2
    assert refusal.reason in capsys.readouterr().err
    for value in refusal.accepted:
        assert cli.main(["serve", f"--{refusal.name}={value}", "--print-config"]) == 0


def test_short_tensor_parallel_flag(capsys) -> None:
    assert cli.main(["serve", "-tp", "1", "--print-config"]) == 0
    assert cli.main(["serve", "-tp", "2", "--print-config"]) == 2
    assert "--tensor-parallel-size" in capsys.readouterr().err


def test_unknown_flags_get_a_suggestion(capsys) -> None:
    assert cli.main(["serve", "--max-model-length", "4"]) == 2
    assert "did you mean '--max-model-len'" in capsys.readouterr().err
    assert cli.main(["sreve"]) == 2
    assert "serve" in capsys.readouterr().err


def test_model_may_be_positional_or_a_flag_but_not_two_things(capsys) -> None:
    assert parsed("a/b").config.model == "a/b"
    assert parsed("--model-path", "a/b").config.model == "a/b"
    assert cli.main(["serve", "a/b", "--model", "c/d", "--print-config"]) == 2
    assert "differ" in capsys.readouterr().err


def test_names_are_unique_and_fields_exist() -> None:
    spellings = [*BY_NAME, *ALIASES, *(refusal.name for refusal in REFUSALS)]
    assert len(spellings) == len(set(spellings))
    written_under_models = {"version"}
    fields = {option.field for option in OPTIONS} | written_under_models
    assert fields == set(resolve({}, {}).config.__dict__)


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["version"], []])
def test_help_works(arguments, capsys) -> None:
    try:
        status: object = cli.main(arguments)
    except SystemExit as end:
        status = end.code
    assert status == 0
    assert "baton" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["bench"], ["bench", "serve-nothing"]])
def test_bench_says_what_it_can(arguments, capsys) -> None:
    assert cli.main(arguments) == 2
    assert "bench" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ("http://c:4318", "http://c:4318/v1/traces"),
        ("https://c/", "https://c/v1/traces"),
        ("http://c:4318/v1/traces", "http://c:4318/v1/traces"),
        ("http://c/otel/in", "http://c/otel/in"),
    ],
)
def test_a_traces_endpoint_without_a_path_gets_the_usual_one(given, means) -> None:
    assert resolve({"otlp-traces-endpoint": given}, {}).config.otlp_traces_endpoint == means


@pytest.mark.parametrize("given", ["grpc://c:4317", "c:4317", "http://"])
def test_a_traces_endpoint_that_is_no_http_is_refused_by_name(given) -> None:
    with pytest.raises(ConfigError, match="--otlp-traces-endpoint"):
        resolve({"otlp-traces-endpoint": given}, {})


def test_traces_without_their_extra_are_refused_with_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda _: None)
    serve.check_tracing(None)
    with pytest.raises(ConfigError, match=r"baton-serve\[otel\]"):
        serve.check_tracing("http://c:4318/v1/traces")


def test_onednn_keeps_state_of_few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no own kernels: 336 MiB after 280 prompt lengths without a limit, 8 MiB with one."""
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    variables = child_environment(1)
    assert variables["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "128"
    assert variables["LRU_CACHE_CAPACITY"] == "7"


@pytest.mark.parametrize(
    "name", ["OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "my_password"]
)
def test_only_who_asks_other_servers_gets_their_secrets(monkeypatch, name) -> None:
    monkeypatch.setenv(name, "sk-secret")
    assert name not in child_environment()
    assert child_environment(keeps_secrets=True)[name] == "sk-secret"


@pytest.mark.parametrize("name", ["BATON_API_KEY", "BATON_ADMIN_API_KEY"])
def test_no_child_gets_batons_own_keys(monkeypatch, name) -> None:
    monkeypatch.setenv(name, "sk-secret")
    assert name not in child_environment(keeps_secrets=True)


@pytest.mark.parametrize(
    "name", ["TOKENIZERS_PARALLELISM", "PATH", "KEYBOARD", "BATON_SSL_KEYFILE"]
)
def test_what_only_sounds_like_a_secret_is_handed_on(monkeypatch, name) -> None:
    monkeypatch.setenv(name, "x")
    assert name in child_environment()
