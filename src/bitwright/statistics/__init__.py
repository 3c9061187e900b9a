"""Mergeable collectors of what flows through a network, in bounded memory."""

from bitwright.statistics.base import Collector, Prefix, Statistic, View
from bitwright.statistics.channel import AbsMax, ChannelMeans, Range
from bitwright.statistics.counts import TokenCount
from bitwright.statistics.fisher import Fisher
from bitwright.statistics.hessian import CrossHessian, Hessian
from bitwright.statistics.histogram import Histogram
from bitwright.statistics.sample import InputSample

__all__ = [
    "AbsMax",
    "ChannelMeans",
    "Collector",
    "CrossHessian",
    "Fisher",
    "Hessian",
    "Histogram",
    "InputSample",
    "Prefix",
    "Range",
    "Statistic",
    "TokenCount",
    "View",
]
