"""Whose ticket a model server looks for first."""

from nst_server.jobs.tickets import Flow
from nst_server.model_server.app import Rotation

URGENT = [Flow("interactive", tenant) for tenant in "abc"]
PATIENT = [Flow("batch", tenant) for tenant in "ab"]


def test_tenants_of_a_lane_take_turns():
    rotation = Rotation()
    served = []
    for _ in range(7):
        served.append(rotation.rank(URGENT)[0])
        rotation.served(served[-1])
    assert [flow.tenant for flow in served] == list("abcabca")


def test_interactive_tickets_go_first_however_often_they_did():
    rotation = Rotation()
    for _ in range(5):
        rotation.served(URGENT[0])
    assert rotation.rank([*PATIENT, URGENT[0]]) == [URGENT[0], *PATIENT]
