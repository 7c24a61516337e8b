"""Published search spaces, one file each, and the loading of a user's own.

A new space is one file with a `build_...` function and one line in `SPACES`.
"""

from collections.abc import Callable

from hwnas.ir.space import SearchSpace
from hwnas.spaces.mobile_cpu import build_mobile_cpu
from hwnas.spaces.proxyless import build_proxyless
from hwnas.spaces.spos import build_spos, build_spos_cpu

SPACES: dict[str, Callable[[], SearchSpace]] = {
    "mobile-cpu": build_mobile_cpu,
    "spos-cpu": build_spos_cpu,
    "spos": build_spos,
    "proxyless": build_proxyless,
}
