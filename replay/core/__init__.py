"""The routing core: policy terms, their meaning, and failover. Pure: no I/O, no clock, no unseeded randomness."""

from replay.core.admission import AdmissionError
from replay.core.candidates import Candidate, Request, State
from replay.core.fields import CORE_SCHEMA, Field, Schema
from replay.core.health import CLIENT_ERROR_KINDS, Health
from replay.core.library import SHIPPED_FIELDS, SHIPPED_POLICIES, load_policy
from replay.core.machine import Attempt, Limits, Outcome, Step, Wait, Walk, failover
from replay.core.planning import Plan, plan
from replay.core.policy import Action, Policy, admit, admit_pred

__all__ = [
    "CLIENT_ERROR_KINDS",
    "CORE_SCHEMA",
    "SHIPPED_FIELDS",
    "SHIPPED_POLICIES",
    "Action",
    "AdmissionError",
    "Attempt",
    "Candidate",
    "Field",
    "Health",
    "Limits",
    "Outcome",
    "Plan",
    "Policy",
    "Request",
    "Schema",
    "State",
    "Step",
    "Wait",
    "Walk",
    "admit",
    "admit_pred",
    "failover",
    "load_policy",
    "plan",
]
