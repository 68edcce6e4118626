"""The other model servers, to which this one leaves jobs that it cannot do."""

import asyncio
from collections.abc import Callable, Mapping, Set

from nst.internal.v1.job_record_pb2 import Announcement
from nst.v1.style_transfer_service_pb2 import ModelServer
from nst_engine import Engine
from nst_engine.faces import can_find_faces
from nst_engine.networks import NETWORKS
from nst_server.jobs.announcements import announcements, may_find_faces
from nst_server.jobs.backbone import Backbone

LEFT_SECONDS = 60.0


class Others:
    """What this server tells of itself, and what it leaves to those that tell of more."""

    def __init__(self, engine: Engine, backbone: Backbone, server: str) -> None:
        """`server` is this one's name."""
        self._engine = engine
        self._backbone = backbone
        self._server = server
        self._left: dict[str, float] = {}  # until when, on the loop's clock

    async def leave_model(self, model: str) -> bool:
        """Leaves jobs with this model to others for a while; False if none of them has its weights."""
        return await self._leave(model, lambda other: model in other.models)

    async def leave_large(self, job_id: str, model: str, *, faces: bool) -> bool:
        """Leaves the job to others for a while; False if none with a larger memory budget can do it.

        `faces` is whether faces are to be found in it, for which nobody is to leave it to this one again.
        """

        def can(other: Announcement) -> bool:
            larger = other.memory_budget > self._engine.memory_budget
            return larger and model not in other.left and (may_find_faces(other) or not faces)

        return await self._leave(job_id, can)

    async def leave_faces(self, job_id: str, model: str) -> bool:
        """Leaves the job to others for a while; False if none that can find faces may have its model."""
        return await self._leave(job_id, lambda other: may_find_faces(other) and model not in other.left)

    async def _leave(self, name: str, can: Callable[[Announcement], bool]) -> bool:
        alive = await announcements(self._backbone, patience=None)
        if not any(can(other) for other in alive if other.server.name != self._server):
            return False
        self._left[name] = asyncio.get_running_loop().time() + LEFT_SECONDS
        return True

    @property
    def left(self) -> Set[str]:
        """The models, and the ids of the jobs, that are left to others now."""
        now = asyncio.get_running_loop().time()
        self._left = {name: end for name, end in self._left.items() if end > now}
        return self._left.keys()

    async def announcement(self, running: Mapping[str, int]) -> Announcement:
        """What others, and clients, are told. Of models, those whose weights are here, and could be read.

        `running` is how many jobs it works on, by lane. Raises OSError where the folder of weights cannot be read.
        """
        available = await asyncio.to_thread(self._engine.available_models)
        left = self.left
        return Announcement(
            server=ModelServer(name=self._server, device=self._engine.device_name, running_jobs=sum(running.values())),
            models=[model for model in available if model not in left],
            left=left & NETWORKS.keys(),
            memory_budget=self._engine.memory_budget,
            running=running,
            finds_faces=can_find_faces(),
        )
