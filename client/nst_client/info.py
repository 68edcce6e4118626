"""What a server says of itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nst.v1.style_transfer_service_pb2 import GetServerInfoResponse
from nst_client.options import options_dict


@dataclass(frozen=True, kw_only=True)
class Model:
    """A feature network.

    Attributes:
        name: for the option `model`.
        description, credit: what it is; who made the weights, and on what terms.
        available: whether a model server that is alive has the weights.
        taps: from shallow to deep.
    """

    name: str
    description: str
    credit: str
    available: bool
    taps: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ModelServer:
    """A model server that is alive: its name, what it computes on, and the jobs it holds now."""

    name: str
    device: str
    running_jobs: int


@dataclass(frozen=True, kw_only=True)
class ServerInfo:
    """What a server is, allows and assumes.

    Attributes:
        version: the server's.
        models, model_servers: the networks it knows, and who computes now.
        limits: what it refuses to exceed, or to fall short of where a name begins with min_; in bytes, pixels,
            seconds or numbers of things.
        defaults: what unset options mean; `stylize` takes it as **options.
        ranges: smallest and largest allowed value of the numeric options.
        preview_interval: what an unset one means, in iterations; None if the server does not say.
    """

    version: str
    models: tuple[Model, ...]
    model_servers: tuple[ModelServer, ...]
    limits: Mapping[str, int]
    defaults: Mapping[str, Any]
    ranges: Mapping[str, tuple[float, float]]
    preview_interval: int | None

    @classmethod
    def from_proto(cls, info: GetServerInfoResponse) -> "ServerInfo":
        """From the server's answer."""
        preview = info.preview_defaults
        return cls(
            version=info.version,
            models=tuple(
                Model(
                    name=model.name,
                    description=model.description,
                    credit=model.credit,
                    available=model.available,
                    taps=tuple(model.taps),
                )
                for model in info.models
            ),
            model_servers=tuple(
                ModelServer(name=server.name, device=server.device, running_jobs=server.running_jobs)
                for server in info.model_servers
            ),
            limits=dict(info.limits),
            defaults=options_dict(info.defaults),
            ranges={name: (allowed.minimum, allowed.maximum) for name, allowed in info.ranges.items()},
            preview_interval=preview.interval if preview.HasField("interval") else None,
        )
