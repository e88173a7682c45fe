"""Triton's model configuration, repository and statistics over gRPC, from the same values as over HTTP (`server.api.repository`).

https://github.com/triton-inference-server/server/tree/main/docs/protocol: extension_model_configuration, extension_model_repository,
extension_statistics. Models are neither loaded nor unloaded.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from loopwright.base.errors import NotSupported
from loopwright.deploy.serving.registry import InService, Registry
from loopwright.server.api import repository
from loopwright.server.api.grpc_messages import messages
from loopwright.server.api.metrics import Metrics
from loopwright.server.api.routes import Permission

_DATA_TYPES = {"TYPE_BOOL": 1, "TYPE_INT64": 9, "TYPE_FP64": 12, "TYPE_STRING": 13}
"""Numbers of `DataType` in model_config.proto, of the types that columns and answers have."""


class Repository:
    """Answers the methods. `service` gives a loop in memory (name, version), `aside` calls a function in a thread."""

    def __init__(
        self,
        registry: Registry,
        metrics: Metrics,
        service: Callable[[str, str], Awaitable[InService]],
        aside: Callable[..., Awaitable[Any]],
    ) -> None:
        self._registry, self._metrics, self._service, self._aside = registry, metrics, service, aside
        self.methods: dict[str, tuple[Permission, Any]] = {
            "ModelConfig": ("observe", self._config),
            "ModelStatistics": ("observe", self._statistics),
            "RepositoryIndex": ("predict", self._index),
            "RepositoryModelLoad": ("predict", self._load),
            "RepositoryModelUnload": ("predict", self._load),
        }

    async def _config(self, request: Any, _: Any, __: Any) -> Any:
        predictor = (await self._service(request.name, request.version)).predictor
        config = repository.config(request.name, predictor.digest, predictor.package.manifest)
        for side in ("input", "output"):
            config[side] = [{**tensor, "data_type": _DATA_TYPES[tensor["data_type"]]} for tensor in config[side]]
        return messages()["ModelConfigResponse"](config=config)

    async def _statistics(self, request: Any, _: Any, __: Any) -> Any:
        """Statistics of one loop, or of those in memory if none is named."""
        services = [await self._service(request.name, request.version)] if request.name else self._registry.loaded
        self._metrics.flush()
        found = await self._aside(self._metrics.statistics)
        stats = repository.model_statistics(services, found)
        for one in stats:
            del one["batch_stats"]
        return messages()["ModelStatisticsResponse"](model_stats=stats)

    async def _index(self, request: Any, _: Any, __: Any) -> Any:
        models = repository.index(self._registry.loops, self._registry.unready, self._registry.loaded, ready=request.ready)
        return messages()["RepositoryIndexResponse"](models=models)

    async def _load(self, _: Any, __: Any, ___: Any) -> Any:
        raise NotSupported(repository.NOT_LOADED)
