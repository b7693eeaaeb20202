"""From flags and a host to specs: sizes, cores, capacities."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch

from deploy.commands.serve import claim_port, read_news
from deploy.config.serve_config import resolve
from deploy.config.values import GIB, MIB, format_bytes, parse_affinity, parse_bytes, parse_cores
from deploy.host.affinity import lend_cores, quota_cores, share_cores
from deploy.host.memory import (
    available_bytes,
    check_fits,
    default_kv_bytes,
)
from deploy.host.model_source import find_source, resolve_dtype
from deploy.host.run_directory import LOCK_NAME, PREFIX, reap, run_directory
from deploy.launch.fleet_plan import make_fleet_plan
from deploy.launch.plan import Host, check_chosen_template, make_plan, next_share, place_template
from engine.checkpoints.prepared import WEIGHTS_NAME
from launching.backoff import Backoff
from protocol.errors import ConfigError
from tests.e2e.launcher_driver import MODEL
from tests.model_files import write_safetensors

HOST = Host((0, 1), None, 16 * GIB)
DIRECTORY = Path("/tmp/run")


def plan(host: Host = HOST, **options: str):
    named = {name.replace("_", "-"): value for name, value in options.items()}
    return make_plan(resolve(named, {}).config, MODEL, host, DIRECTORY, 8000)


def test_prices_are_of_served_names_and_leave_none_of_them_free() -> None:
    def priced(*prices: str, names: tuple[str, ...] = ()):
        given = {"price": list(prices), "keys-db": "keys.db"}
        model = msgspec.structs.replace(MODEL, served_names=names or MODEL.served_names)
        return make_plan(resolve(given, {}).config, model, HOST, DIRECTORY, 8000).coordinator

    for prices in (("tiny=1/2",), ("*=1/2",), ("tiny=1/2", "*=3/4")):
        assert priced(*prices).prices == prices
    assert priced("a=1/2", "b=0/0", names=("a", "b")).prices == ("a=1/2", "b=0/0")
    for prices, names, told in (
        (("other=1/2", "tiny=1/2"), (), "no model 'other' here; served: tiny"),
        (("tiny:latest=1/2", "*=1/2"), (), "no model 'tiny:latest'"),
        (("a=1/2",), ("a", "b", "c"), "b, c would cost nothing"),
        (("tiny=1/2", "tiny=0/0"), (), "'tiny' has more than one price"),
    ):
        with pytest.raises(ConfigError, match=f"--price: .*{told}"):
            priced(*prices, names=names)


def test_several_models_have_prices_and_deployments_of_any_of_them(tmp_path) -> None:
    router = tmp_path / "router.yaml"
    router.write_text("model_list: [{model_name: g, litellm_params: {model: baton/blue}}]")
    given = {"router-config": str(router), "keys-db": "keys.db", "kv-cache-memory": "32MiB"}
    (tmp_path / WEIGHTS_NAME).write_bytes(b"0")
    models = [
        msgspec.structs.replace(MODEL, name=name, served_names=(name,), directory=str(tmp_path))
        for name in ("red", "blue")
    ]

    def priced(*prices: str):
        config = resolve(given | {"price": list(prices)}, {}).config
        plan = make_fleet_plan([config, config], models, HOST, DIRECTORY, 8000, make_plan)
        return plan.coordinator.prices

    assert priced("red=1/2", "blue=0/0", "g=3/4") == ("red=1/2", "blue=0/0", "g=3/4")
    with pytest.raises(ConfigError, match="g would cost nothing"):
        priced("red=1/2", "blue=0/0")
    with pytest.raises(ConfigError, match="served: red, blue, g"):
        priced("green=1/2")
    router.write_text("model_list: [{model_name: g, litellm_params: {model: baton/green}}]")
    with pytest.raises(ConfigError, match="'green' here; served: red, blue"):
        priced("*=1/2")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 * GIB),
        ("2G", 2 * GIB),
        ("512 MiB", 512 * MIB),
        ("1.5gb", 1_500_000_000),
        ("4096", 4096),
    ],
)
def test_sizes(text, size) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "2 gibs", "1e9", "2GiB3"])
def test_not_sizes(text) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_bytes(text)


def test_sizes_read_well() -> None:
    assert [format_bytes(n) for n in (5, 2048, 3 * MIB, GIB + GIB // 2)] == [
        "5 B",
        "2.0 KiB",
        "3.0 MiB",
        "1.5 GiB",
    ]


def test_default_pool_is_bounded_both_ways() -> None:
    assert default_kv_bytes(GIB, 4) == 256 * MIB
    assert default_kv_bytes(20 * GIB, 2) == GIB
    assert default_kv_bytes(1000 * GIB, 2) == 4 * GIB


def test_pools_that_do_not_fit_are_refused_before_anything_starts() -> None:
    check_fits(GIB, 2, 10 * GIB)
    with pytest.raises(ConfigError, match=r"--kv-cache-memory: 2 workers x 9.0 GiB"):
        plan(kv_cache_memory="9GiB")


@pytest.mark.parametrize("option", ["keys-db", "router-config", "ssl-certfile", "chat-template"])
def test_a_home_that_is_not_there_is_told_with_its_option(option) -> None:
    with pytest.raises(ConfigError, match=rf"^--{option}: '~nobody_x/f'.*write the whole path"):
        plan(HOST, **{option: "~nobody_x/f"})


def test_a_routers_file_may_be_at_home(tmp_path, monkeypatch) -> None:
    file = tmp_path / "router.yaml"
    file.write_text("model_list: [{model_name: g, litellm_params: {model: baton/tiny}}]")
    monkeypatch.setenv("HOME", str(tmp_path))
    here = plan(HOST, **{"router-config": str(file)})
    assert plan(HOST, **{"router-config": "~/router.yaml"}).coordinator.router_config == str(file)
    assert here.coordinator.router_config == str(file)


def test_an_adapter_that_cannot_be_served_is_refused_before_anything_starts(tmp_path) -> None:
    def modules(path: Path) -> tuple[tuple[str, str], ...]:
        options = {"kv-cache-memory": "32MiB", "enable-lora": True, "lora-modules": [f"sql={path}"]}
        return make_plan(
            resolve(options, {}).config, MODEL, HOST, DIRECTORY, 0
        ).coordinator.lora_modules

    settings, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    wanted = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    config, name = MODEL.config, "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    shapes = {"A": (4, config.hidden_size), "B": (config.num_heads * config.head_dim, 4)}
    tensors = {
        name.format(layer, which): torch.ones(shape)
        for layer in range(config.num_layers)
        for which, shape in shapes.items()
    }
    settings.write_text(json.dumps(wanted))
    write_safetensors(weights, tensors)
    assert modules(tmp_path) == (("sql", str(tmp_path)),)
    write_safetensors(weights, tensors | {"other": torch.ones(1)})
    with pytest.raises(ConfigError, match=rf"^{weights}: the tensor other has no use"):
        modules(tmp_path)
    settings.write_text("{")
    with pytest.raises(ConfigError, match=rf"^{settings} is not a JSON object"):
        modules(tmp_path)
    with pytest.raises(ConfigError, match="there is no directory"):
        modules(tmp_path / "absent")


def test_what_steps_take_counts_beside_the_pools() -> None:
    check_fits(4 * GIB, 2, 10 * GIB)
    with pytest.raises(
        ConfigError, match=r"2 workers x 4.0 GiB \(and 1.0 GiB for its steps\) do not fit"
    ):
        check_fits(4 * GIB, 2, 10 * GIB, step_bytes=GIB)
    with pytest.raises(ConfigError, match=r"for its steps\) .*--max-num-batched-tokens"):
        plan(kv_cache_memory="256MiB", max_num_batched_tokens="1048576")


def test_available_memory_is_the_smaller_of_host_and_cgroup(tmp_path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:   4096 kB\n")
    assert available_bytes(meminfo, tmp_path) == 4 * MIB
    (tmp_path / "memory.max").write_text("3145728\n")
    (tmp_path / "memory.current").write_text("1048576\n")
    assert available_bytes(meminfo, tmp_path) == 2 * MIB
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(meminfo, tmp_path) == 4 * MIB


@pytest.mark.parametrize(
    ("line", "root", "limit", "used", "cached"),
    [
        ("0::/a.slice/b", "", "memory.max", "memory.current", "inactive_file"),
        (
            "4:memory:/a.slice/b",
            "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ],
)
def test_every_cgroup_around_it_bounds_a_process(
    tmp_path: Path, line: str, root: str, limit: str, used: str, cached: str
) -> None:
    meminfo, own, cgroup = tmp_path / "meminfo", tmp_path / "own", tmp_path / "cgroup"
    meminfo.write_text("MemAvailable:   9216 kB\n")
    own.write_text(f"9:name=systemd:/\n{line}\n2:cpu,cpuacct:/elsewhere\n")
    inner = cgroup / root / "a.slice" / "b"
    inner.mkdir(parents=True)
    assert available_bytes(meminfo, cgroup, own) == 9 * MIB
    (inner / limit).write_text(f"{6 * MIB}\n")
    (inner / used).write_text(f"{3 * MIB}\n")
    (inner / "memory.stat").write_text(f"anon 7\n{cached} {MIB}\n")
    assert available_bytes(meminfo, cgroup, own) == 4 * MIB, "cached files are not taken"
    (inner.parent / limit).write_text(f"{5 * MIB}\n")
    (inner.parent / used).write_text(f"{3 * MIB}\n")
    assert available_bytes(meminfo, cgroup, own) == 2 * MIB, "the one around it has less"


def test_core_lists() -> None:
    assert parse_cores("0-2,5") == (0, 1, 2, 5)
    for text in ("", "a", "1-", "3-1", "1,1"):
        with pytest.raises(ValueError, match="core"):
            parse_cores(text)
    assert parse_affinity("0;1") == "0;1"


@pytest.mark.parametrize(
    ("affinity", "workers", "allowed", "expected"),
    [
        ("auto", 2, (0, 1), [((0,), 1), ((1,), 1)]),
        ("auto", 1, (0, 1), [((0, 1), 2)]),
        ("auto", 3, tuple(range(8)), [((0, 1), 2), ((2, 3, 4), 3), ((5, 6, 7), 3)]),
        ("auto", 4, (0, 1), [((0,), 1), ((1,), 1), ((0,), 1), ((1,), 1)]),
        ("none", 2, (0, 1, 2, 3), [((), 2), ((), 2)]),
        ("4-7", 2, tuple(range(8)), [((4, 5), 2), ((6, 7), 2)]),
        ("0;1-3", 2, (0, 1, 2, 3), [((0,), 1), ((1, 2, 3), 3)]),
    ],
)
def test_cores_are_split(affinity, workers, allowed, expected) -> None:
    shares = share_cores(affinity, workers, allowed)
    assert [(share.cores, share.num_threads) for share in shares] == expected


def test_under_a_quota_nothing_is_pinned_and_threads_follow_it() -> None:
    (first, second) = share_cores("auto", 2, tuple(range(64)), quota=4.0)
    assert first == second
    assert (first.cores, first.num_threads) == ((), 2)


def test_quota_file(tmp_path) -> None:
    file = tmp_path / "cpu.max"
    assert quota_cores(file) is None
    file.write_text("max 100000\n")
    assert quota_cores(file) is None
    file.write_text("150000 100000\n")
    assert quota_cores(file) == 1.5


@pytest.mark.parametrize(("affinity", "said"), [("9", "core 9"), ("0;1;0", "3 lists for 2")])
def test_impossible_affinity(affinity, said) -> None:
    with pytest.raises(ConfigError, match=said):
        share_cores(affinity, 2, (0, 1))


def test_specs_of_a_pair() -> None:
    made = plan(kv_cache_memory="1MiB", pd="1p1d", api_key="k")
    prefill, decode = made.workers
    assert (prefill.worker_id, prefill.role, decode.role) == ("prefill-0", "prefill", "decode")
    assert (prefill.cores, decode.cores) == ((0,), (1,))
    assert prefill.control == decode.control == made.coordinator.control
    assert made.coordinator.expected == {"prefill": 1, "decode": 1}
    assert made.coordinator.api_keys == ("k",)
    block_bytes = 16 * MODEL.config.kv_bytes_per_token(4)
    assert prefill.num_blocks == MIB // block_bytes


def test_context_length_is_the_models_or_what_the_pool_holds() -> None:
    assert plan().coordinator.max_model_len == 2048
    small = plan(kv_cache_memory="256KiB")
    assert small.coordinator.max_model_len == small.kv_tokens == 512
    with pytest.raises(ConfigError, match="more than the 2048"):
        plan(max_model_len="4096")
    with pytest.raises(ConfigError, match="do not fit in a KV pool of 512"):
        plan(max_model_len="1024", kv_cache_memory="256KiB")
    with pytest.raises(ConfigError, match="fewer than two blocks"):
        plan(kv_cache_memory="8KiB")


def test_chat_template_is_a_file_or_its_text(tmp_path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text("{{ messages }}")
    assert place_template(str(file), tmp_path) == str(file)
    made = place_template("{% if 1 %}x", tmp_path)
    assert made is not None
    assert Path(made).read_text() == "{% if 1 %}x"
    with pytest.raises(ConfigError, match="--chat-template"):
        plan(chat_template="absent.jinja")


def test_a_chosen_template_is_tried_before_anything_is_read(tmp_path) -> None:
    check_chosen_template(None)
    check_chosen_template("{{ messages }}")
    (tmp_path / "t.jinja").write_bytes(b"\xff")
    for bad in ("{% if %}", str(tmp_path / "t.jinja"), str(tmp_path / "absent.jinja")):
        with pytest.raises(ConfigError, match="--chat-template: "):
            check_chosen_template(bad)


def test_seed_is_given_or_drawn() -> None:
    assert plan(seed="7").coordinator.seed == 7
    assert plan().coordinator.seed != plan().coordinator.seed


def test_one_more_worker_takes_the_least_used_cores() -> None:
    workers = list(plan().workers)
    assert next_share(workers, (0, 1)) == (0,)
    assert next_share(workers[:1], (0, 1)) == (1,)


def test_backoff_grows_and_forgets() -> None:
    backoff = Backoff()
    waits = [backoff.next_s(0.0) for _ in range(9)]
    assert waits == [0.2, 1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff.next_s(31.0) == 0.2
    assert backoff.next_s(0.0) == 1.0


def test_sources_are_told_apart(tmp_path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(ConfigError, match=r"no config\.json"):
        find_source(str(tmp_path / "m"))
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "x.gguf").write_text("")
    (tmp_path / "x.bin").write_text("")
    assert find_source("smollm2-135m").kind == "embedded"
    assert find_source(str(tmp_path / "m")).name == "m"
    assert find_source(str(tmp_path / "x.gguf")).name == "x"
    assert find_source("org/name").kind == "hub"
    for wrong in (str(tmp_path / "x.bin"), "/absent/dir", "absent.gguf", "lonely", "a/b/c", "./a"):
        with pytest.raises(ConfigError, match="model:"):
            find_source(wrong)


def test_auto_dtype_asks_the_processor(tmp_path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags\t\t: fpu avx512_bf16\n")
    assert resolve_dtype("auto", "cpu", cpuinfo) == "bfloat16"
    assert resolve_dtype("float32", "cpu", cpuinfo) == "float32"
    cpuinfo.write_text("flags\t\t: fpu avx2\n")
    assert resolve_dtype("auto", "cpu", cpuinfo) == "float32"
    assert resolve_dtype("auto", "cpu", tmp_path / "absent") == "float32"


def test_run_directory_is_private_and_temporary(tmp_path) -> None:
    with run_directory(tmp_path) as directory:
        assert directory.stat().st_mode & 0o777 == 0o700
        assert reap(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_remains_of_the_dead_are_reaped(tmp_path) -> None:
    dead = tmp_path / (PREFIX + "dead")
    dead.mkdir()
    (dead / LOCK_NAME).write_text("123\n")
    young = tmp_path / (PREFIX + "young")
    young.mkdir()
    assert reap(tmp_path) == [dead]
    assert young.exists()


def test_port_0_becomes_a_number_and_a_taken_port_an_error() -> None:
    import socket

    assert claim_port("127.0.0.1", 0) > 0
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="--port"):
            claim_port("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ConfigError, match="--host"):
        claim_port("no such host", 1)


def test_ready_line_may_bring_news() -> None:
    assert read_news('{"backend": "cpu"}') == {"backend": "cpu"}
    assert read_news("") == read_news("x") == read_news("[1]") == {}


def test_workers_lend_each_other_their_cores_nearest_first() -> None:
    shares = lend_cores(share_cores("auto", 3, tuple(range(5))))
    assert [share.cores for share in shares] == [(0,), (1, 2), (3, 4)]
    assert [share.lent_cores for share in shares] == [(1, 2, 3, 4), (3, 4, 0), (0, 1, 2)]


@pytest.mark.parametrize(("affinity", "workers"), [("auto", 3), ("none", 2), ("0;0-1", 2)])
def test_cores_that_nobody_has_alone_are_not_lent(affinity, workers) -> None:
    shares = share_cores(affinity, workers, (0, 1))
    assert lend_cores(shares) == shares
    assert {share.lent_cores for share in shares} == {()}
