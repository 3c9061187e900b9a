"""Jobs: plan, run, resume, verify, report; and the short Python interface over them."""

from bitwright.jobs.api import load, plan, quantize
from bitwright.jobs.opening import Job
from bitwright.jobs.run import JobResult, run

__all__ = ["Job", "JobResult", "load", "plan", "quantize", "run"]
