"""The coordinator process: HTTP edge, service and control socket on one event loop. Owns what is made of a spec, and its order."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from coordinator.cluster.cluster import Cluster, ClusterSettings, Surroundings
from coordinator.cluster.control_socket import ControlSocket
from coordinator.cluster.fleet import Fleet, FleetPools, Member
from coordinator.cluster.fleet_sleep import FleetSleep
from coordinator.cluster.residency import Residency, Resident
from coordinator.cluster.residents import Residents
from coordinator.edge.app import Offer, Parsers, SamplingDefaults, ServedModel, Sites, create_app
from coordinator.edge.http.tls import Tls, TlsFiles
from coordinator.edge.http.wire.limits import WireLimits
from coordinator.edge.http.wire.server import make_server
from deploy.config.autoscale import limits_of, targets_of
from deploy.config.topology import all_variables
from deploy.processes.adapter_book import open_adapters
from deploy.processes.grammar_child import GrammarProcess
from deploy.processes.growth import HERE_BEFORE, Around, make_rollouts
from deploy.processes.owner_watch import OwnerWatch
from engine.checkpoints import embedded
from protocol.clock import SystemClock
from protocol.periodic import Periodic
from protocol.randomness import seeds_of
from protocol.sampling import Pooling

if TYPE_CHECKING:
    from collections.abc import Sequence

    import uvicorn

    from coordinator.accounts.accounts import Accounts
    from coordinator.cluster.service_api import AutoscaleMode
    from coordinator.edge.telemetry.request_record import TraceSink
    from coordinator.upstreams.settings import RouterSettings
    from protocol.messages.reports import WorkerMessage
    from protocol.specs import CoordinatorSpec, ModelSpec, PreparedModel

LISTENS_EVERY_S = 0.05


class CoordinatorProcess:
    """Wires the parts; everything runs on the event loop that calls `serve`."""

    def __init__(self, spec: CoordinatorSpec, ready_fd: int | None) -> None:
        self.spec = spec
        self._ready_fd = ready_fd
        self.clock = SystemClock()
        self.control = ControlSocket(spec.control, self._on_message, spec.keys)
        members = [
            Member(model.key, self._make_cluster(model), model.model.weights_hash)
            for model in spec.models
        ]
        self.residents = self._make_residents(members)
        state_of = None if self.residents is None else self.residents.view
        scale = None if self.residents is None else self.residents.scale
        self.fleet = Fleet(members, self.control.send, state_of, scale)
        self._grammars: dict[str, GrammarProcess] = {}
        self.rollouts = make_rollouts(spec, self._around(), self.residents, self.clock)
        self.fleet.shows(self.rollouts.view)
        self._news_of_start = Periodic("saying that it listens", LISTENS_EVERY_S, self._listens)
        self._server: uvicorn.Server | None = None
        self._closing: list[asyncio.Future[None]] = []
        self.owner = OwnerWatch(
            spec.owner_silence_s, self.fleet, self.fleet.first.outgoing, self.clock
        )
        self.traces = self._open_traces(spec.otlp_traces_endpoint)
        self.accounts = self._open_accounts()
        self.router = self._router_settings()
        clusters = {member.name: member.cluster for member in members}
        self.adapters = open_adapters(spec, clusters, self.clock, self._group_names())
        self.tls = self._open_tls()

    def _around(self) -> Around:
        """What a revision more needs of this process."""
        return Around(
            fleet=self.fleet,
            make_cluster=self._make_cluster,
            offer=lambda model, cluster: self._app.state.offer(self._offer(model, cluster)),
            withdraw=self._withdraw,
            tell=self.fleet.first.outgoing.tell_launcher,
        )

    def _withdraw(self, name: str) -> None:
        self._app.state.withdraw(name)
        if (grammars := self._grammars.pop(name, None)) is not None:
            self._closing.append(asyncio.ensure_future(grammars.close()))

    def _make_residents(self, members: Sequence[Member]) -> Residents | None:
        """None where models stay."""
        spec = self.spec
        if spec.memory_budget_bytes is None:
            return None
        residents = [
            Resident(
                model.model.served_names[0],
                model.needed_bytes,
                None if model.keep_alive_s < 0 else model.keep_alive_s,
                least_bytes=least_bytes(model),
            )
            for model in spec.models
        ]
        residency = Residency(
            residents,
            spec.memory_budget_bytes,
            spec.max_loaded_models,
            spec.max_queued_requests,
            autoload=spec.models_autoload,
        )
        clusters = {member.name: member.cluster for member in members}
        for cluster in clusters.values():
            cluster.books.holding.come_and_go()
        shapes = {model.model.served_names[0]: model.expected for model in spec.models}
        each = {model.name: model.worker_bytes for model in spec.models}
        return Residents(residency, clusters, shapes, self.clock, each)

    def _listens(self) -> None:
        """Where no worker need be there, it serves once it listens."""
        if self._server is not None and self._server.started:
            self._tell_ready()
            self._news_of_start.close()

    def _make_cluster(self, model: ModelSpec) -> Cluster:
        spec = self.spec
        settings = ClusterSettings(
            model_name=model.model.served_names[0],
            block_size=model.block_size,
            expected=model.expected if self._is_here(model) else {},
            max_queued_requests=spec.max_queued_requests,
            max_first_token_s=spec.max_first_token_s,
            local_prefill=spec.local_prefill,
            prefix_caching=spec.prefix_caching,
            drain_grace_s=spec.drain_grace_s,
            key=model.key,
            quantization=model.model.quantization,
        )
        around = Surroundings(on_ready_change=self._tell_ready, read_inbox=self.control.read)
        cluster = Cluster(settings, self.clock, self.control.send, around)
        if spec.slo:
            cluster.policy.watch(targets_of(spec.slo))
        if spec.autoscale:
            mode: AutoscaleMode = "dry-run" if spec.autoscale_dry_run else "on"
            cluster.policy.begin(targets_of(spec.slo), limits_of(spec.autoscale), mode)
        return cluster

    def _is_here(self, model: ModelSpec) -> bool:
        """Whether its workers are there when the server is."""
        revision, comes = model.revision, self.spec.memory_budget_bytes is not None
        return not comes and (revision is None or revision.standing in HERE_BEFORE)

    def _open_traces(self, endpoint: str | None) -> TraceSink | None:
        if endpoint is None:
            return None
        from coordinator.edge.telemetry.otlp_traces import OtlpTraces  # noqa: PLC0415 - an optional extra

        return OtlpTraces(endpoint, self.clock)

    def _open_tls(self) -> Tls | None:
        spec = self.spec
        if spec.ssl_certfile is None:
            return None
        return Tls(TlsFiles(spec.ssl_certfile, spec.ssl_keyfile, spec.ssl_ca_certs))

    def _open_accounts(self) -> Accounts | None:
        spec = self.spec
        if spec.keys_db is None:
            return None
        from coordinator.accounts.accounts import Accounts, AccountSettings  # noqa: PLC0415 - SQLite only where it is used

        must_write = spec.ledger_failure == "refuse"
        settings = AccountSettings(Path(spec.keys_db), spec.prices, must_write)
        return Accounts.open(settings, self.clock)

    def _router_settings(self) -> RouterSettings | None:
        path = self.spec.router_config
        if path is None:
            return None
        from coordinator.upstreams.settings import read_settings  # noqa: PLC0415 - only where it is used

        return read_settings(Path(path), all_variables())

    def _group_names(self) -> tuple[str, ...]:
        """No adapter can have one of these."""
        if self.router is None:
            return ()
        from coordinator.upstreams.settings import names_of  # noqa: PLC0415 - only where it is used

        return names_of(self.router)

    def _on_message(self, identity: bytes, message: WorkerMessage) -> None:
        self.fleet.on_message(identity, message)
        self.owner.hear(message)

    def _tell_ready(self) -> None:
        """One line to the launcher, once, when every expected worker has proven itself."""
        if self._ready_fd is not None and self.fleet.is_ready():
            os.write(self._ready_fd, f"ready {self._news()}\n".encode())
            os.close(self._ready_fd)
            self._ready_fd = None

    def _news(self) -> str:
        """What the launcher shows: the engine, and the roads that every worker has."""
        workers = list(self.fleet)
        roads = [set(worker.hello.address.transports) for worker in workers]
        common = set.intersection(*roads) if roads else set()
        news = {
            "backend": ", ".join(
                sorted({worker.hello.backend for worker in workers if worker.role.computes})
            ),
            "transport": ", ".join(sorted(common)),
        }
        return msgspec.json.encode(news).decode()

    async def serve(self) -> None:
        """Until SIGTERM or SIGINT."""
        self.control.start()
        self.fleet.start()
        server = self._server = self._make_server()
        if self.residents is not None:
            self.residents.start()
            self._news_of_start.start()
        self.rollouts.start_looking()
        self.owner.start(lambda: self._stop(server))
        loop = asyncio.get_running_loop()
        if self.accounts is not None:
            self.accounts.start(loop)
        if self.tls is not None:
            self.tls.watch(loop)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, server)
        try:
            await server._serve()  # noqa: SLF001 - `serve` would take the signal handlers
        finally:
            if self.traces is not None:
                self.traces.close()
            if self.tls is not None:
                self.tls.close()
            if self.accounts is not None:
                await self.accounts.close()
            self.owner.close()
            if self.residents is not None:
                self.residents.close()
            self._news_of_start.close()
            self.rollouts.close()
            self.fleet.close()
            self.control.close()
            for grammars in self._grammars.values():
                await grammars.close()
            await asyncio.gather(*self._closing)

    def _stop(self, server: uvicorn.Server) -> None:
        """Streams in flight end with an error event; then the server closes."""
        self.fleet.cancel_all("the server is shutting down")
        server.should_exit = True

    def _sampling_defaults(self, model: PreparedModel) -> SamplingDefaults:
        """The model's own, with seeds drawn from `--seed` for requests that bring none."""
        own = SamplingDefaults.from_directory(Path(model.directory), seeds_of(self.spec.seed))
        if model.name == embedded.NAME:
            own = dataclasses.replace(own, temperature=embedded.TEMPERATURE, top_p=embedded.TOP_P)
        return own

    def _offer(self, spec: ModelSpec, cluster: Cluster) -> Offer:
        grammars = self._grammars[spec.name] = _grammars_of(spec.model)
        model = ServedModel(
            served_names=spec.model.served_names,
            directory=Path(spec.model.directory),
            config=spec.model.config,
            max_model_len=spec.max_model_len,
            pooling=None if spec.pooling == "none" else Pooling(spec.pooling),
        )
        return Offer(
            model=model,
            service=cluster,
            chat_template=Path(spec.chat_template) if spec.chat_template else None,
            allow_special_tokens_in_content=self.spec.allow_special_tokens_in_content,
            sampling_defaults=self._sampling_defaults(spec.model),
            parsers=Parsers(spec.tool_call_parser, spec.reasoning_parser, _tells_tools(spec)),
            grammars=grammars,
        )

    def _make_server(self) -> uvicorn.Server:
        spec, fleet = self.spec, self.fleet
        offers = [self._offer(*parts) for parts in zip(spec.models, fleet.clusters, strict=True)]
        first, is_alone = offers[0], len(offers) == 1
        app = create_app(
            service=first.service,
            model=first.model,
            others=offers[1:],
            operated=fleet,
            api_keys=spec.api_keys,
            admin_keys=spec.admin_api_keys,
            clock=self.clock,
            root_path=spec.root_path,
            chat_template=first.chat_template,
            allow_special_tokens_in_content=spec.allow_special_tokens_in_content,
            sampling_defaults=first.sampling_defaults,
            traces=self.traces,
            pools=FleetPools(fleet),
            pools_of=fleet.pools_of,
            residents=self.residents,
            revisions=self.rollouts,
            sleeping=FleetSleep(fleet),
            policy=fleet.first.policy if is_alone else None,
            parsers=first.parsers,
            grammars=first.grammars,
            accounts=self.accounts,
            router=self.router,
            adapters=self.adapters,
            sites=Sites(
                checks_host=spec.checks_host,
                hosts=spec.allowed_hosts,
                origins=spec.allowed_origins,
                methods=spec.allowed_methods,
                headers=spec.allowed_headers,
                credentials=spec.allow_credentials,
            ),
        )
        self._app = app
        app.state.start_threads()
        limits = WireLimits(keep_alive_s=spec.keep_alive_s)
        return make_server(
            app,
            host=spec.host,
            port=spec.port,
            limits=limits,
            refused=app.state.refused,
            tls=self.tls,
            proxies=spec.proxies,
        )


def least_bytes(model: ModelSpec) -> int:
    """What it takes with one worker of each role that it has."""
    spare = sum(max(0, n - 1) for role, n in model.expected.items() if role.computes)
    return model.needed_bytes - spare * model.worker_bytes


def _grammars_of(model: PreparedModel) -> GrammarProcess:
    config = model.config
    return GrammarProcess(Path(model.directory), config.vocab_size, config.eos_token_ids)


def _tells_tools(spec: ModelSpec) -> bool:
    """The embedded model's template has no room for tools, and clients that bring some shall be answered."""
    wanted = spec.tool_prompt
    return wanted == "hermes" or (wanted == "auto" and spec.model.name == embedded.NAME)
